// The page's behaviour: unpack plotly.js, draw the figures in the theme's colours, the slider, sorting, copying.
"use strict";
(() => {
  const root = document.documentElement;
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  const { template, figures } = JSON.parse(document.getElementById("figures").textContent);
  const drawn = new Set();

  // -- light and dark -------------------------------------------------------------------------------------------------
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  let theme = new URLSearchParams(location.hash.slice(1)).get("theme") || (dark.matches ? "dark" : "light");
  const toggle = document.getElementById("theme");
  const show = (name) => {
    const other = name === "dark" ? "Light" : "Dark";
    root.dataset.theme = name;
    toggle.textContent = other;
    toggle.setAttribute("aria-label", `Switch to ${other.toLowerCase()} colours`);
    drawn.forEach(draw);
  };
  toggle.addEventListener("click", () => show((theme = theme === "dark" ? "light" : "dark")));
  dark.addEventListener("change", (event) => show((theme = event.matches ? "dark" : "light")));
  window.addEventListener("beforeprint", () => show("light"));
  window.addEventListener("afterprint", () => show(theme));

  // A colour is the name of a variable of the style sheet, as --after, or of one with an opacity in hex, as --after/4d
  const coloured = (figure) => {
    const style = getComputedStyle(root);
    const colour = (name, opacity = "") => style.getPropertyValue(name).trim() + opacity;
    const look = (_, value) => (String(value).startsWith("--") ? colour(...value.split("/")) : value);
    return JSON.parse(JSON.stringify(figure), look);
  };

  // -- figures --------------------------------------------------------------------------------------------------------
  const draw = (name) => {
    const place = document.getElementById(`plot-${name}`);
    const { traces, layout, height } = figures[name];
    const look = coloured({ traces, template, layout: { height, ...layout } });
    if (place.clientWidth < 560) {
      const { xaxis, yaxis, margin } = look.template.layout;
      Object.assign(look.template.layout, { dragmode: false, margin: { ...margin, l: 48 } });
      xaxis.fixedrange = yaxis.fixedrange = true;
    }
    drawn.add(name);
    return Plotly.react(place, look.traces, { ...look.layout, template: look.template }, {
      responsive: true, displaylogo: false, displayModeBar: "hover",
      modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"], toImageButtonOptions: { filename: name, scale: 2 },
    });
  };

  const slide = (name) => {
    const { frames, traces, layout } = figures[name];
    const [play, input, log, text] = all("button, input, output", document.getElementById(`slider-${name}`));
    const last = frames.length - 1;
    let timer = null;
    const go = (index) => {
      const { label, detail, y } = frames[index];
      input.value = index;
      input.setAttribute("aria-valuetext", label);
      text.textContent = [label, detail].filter(Boolean).join(" · ");
      traces[0].y = y;
      Plotly.restyle(`plot-${name}`, { y: [y] }, [0]);
    };
    const stop = () => {
      clearInterval(timer);
      timer = null;
      play.textContent = "Play";
    };
    const step = () => (Number(input.value) === last ? stop() : go(Number(input.value) + 1));
    input.addEventListener("input", () => { stop(); go(Number(input.value)); });
    play.addEventListener("click", () => {
      if (timer) return stop();
      play.textContent = "Pause";
      if (Number(input.value) === last) go(0);
      timer = setInterval(step, Math.max(60, Math.min(400, 6000 / frames.length)));
    });
    const linear = layout.yaxis.range;
    log.addEventListener("change", () => {
      layout.yaxis.type = log.checked ? "log" : "linear";
      layout.yaxis.range = log.checked ? [-0.3, Math.log10(linear[1]) + 0.05] : linear;
      draw(name);
    });
    go(last);
  };

  // -- tables ---------------------------------------------------------------------------------------------------------
  const textOf = (cell) => cell.dataset.value ?? cell.textContent.trim();
  const compare = (a, b) => (Number.isNaN(a - b) ? a.localeCompare(b) : a - b);
  all("table.sortable").forEach((table) => {
    const headings = [...table.tHead.rows[0].cells];
    headings.forEach((heading, column) => heading.firstElementChild.addEventListener("click", () => {
      const down = heading.getAttribute("aria-sort") === "ascending";
      headings.forEach((other) => other.removeAttribute("aria-sort"));
      heading.setAttribute("aria-sort", down ? "descending" : "ascending");
      const rows = [...table.tBodies[0].rows].map((row) => [textOf(row.cells[column]), row]);
      rows.sort(([a], [b]) => (a && b ? (down ? compare(b, a) : compare(a, b)) : !a - !b)); // empty cells come last
      table.tBodies[0].append(...rows.map(([, row]) => row));
    }));
  });
  all("button.copy").forEach((button) => button.addEventListener("click", async () => {
    const rows = [...document.getElementById(button.dataset.table).rows];
    const text = rows.map((row) => [...row.cells].map(textOf).join("\t")).join("\n");
    const copied = await navigator.clipboard.writeText(text).then(() => true, () => false);
    button.textContent = copied ? "Copied" : "Copy failed";
    setTimeout(() => { button.textContent = "Copy table"; }, 1600);
  }));

  // -- start ----------------------------------------------------------------------------------------------------------
  const unpack = async () => {
    const packed = Uint8Array.from(atob(document.getElementById("plotly").textContent), (c) => c.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
    root.append(Object.assign(document.createElement("script"), { textContent: await new Response(stream).text() }));
  };
  const start = async () => {
    show(theme);
    if (Object.keys(figures).length) await unpack();
    for (const [name, { frames }] of Object.entries(figures)) {
      await draw(name);
      if (frames.length) slide(name);
    }
    root.dataset.ready = "yes";
  };
  start().catch((error) => {
    all(".plot:empty").forEach((place) => { place.textContent = "This figure needs a browser of 2023 or later."; });
    throw error;
  });
})();
