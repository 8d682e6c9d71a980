// The page's behaviour: unpack plotly.js, draw the figures in the theme's colours, the slider, sorting, copying.
"use strict";
(() => {
  const root = document.documentElement;
  const { template, figures } = JSON.parse(document.getElementById("figures").textContent);
  const drawn = new Set();

  // -- light and dark -------------------------------------------------------------------------------------------------
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const chosen = () => new URLSearchParams(location.hash.slice(1)).get("theme");
  let theme = chosen() || (dark.matches ? "dark" : "light");
  const toggle = document.getElementById("theme");
  const show = (name) => {
    root.dataset.theme = name;
    toggle.textContent = name === "dark" ? "Light" : "Dark";
    toggle.setAttribute("aria-label", `Switch to ${name === "dark" ? "light" : "dark"} colours`);
    drawn.forEach(draw);
  };
  toggle.addEventListener("click", () => show((theme = theme === "dark" ? "light" : "dark")));
  dark.addEventListener("change", (event) => show((theme = event.matches ? "dark" : "light")));
  window.addEventListener("beforeprint", () => show("light"));
  window.addEventListener("afterprint", () => show(theme));

  // A colour is the name of a variable of the style sheet, as --after
  const coloured = (value, style) => {
    if (typeof value === "string") return value.startsWith("--") ? style.getPropertyValue(value).trim() : value;
    if (Array.isArray(value)) return value.map((item) => coloured(item, style));
    if (value && typeof value === "object")
      return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, coloured(item, style)]));
    return value;
  };

  // -- figures --------------------------------------------------------------------------------------------------------
  const draw = (name) => {
    const place = document.getElementById(`plot-${name}`);
    const style = getComputedStyle(root);
    const { traces, layout, height } = figures[name];
    const narrow = place.clientWidth < 560;
    const look = coloured(template, style);
    if (narrow) for (const axis of [look.layout.xaxis, look.layout.yaxis]) axis.fixedrange = true;
    if (narrow) Object.assign(look.layout, { dragmode: false, margin: { ...look.layout.margin, l: 48 } });
    place.classList.remove("waiting");
    drawn.add(name);
    return Plotly.react(place, coloured(traces, style), { height, ...coloured(layout, style), template: look }, {
      responsive: true, displaylogo: false, displayModeBar: "hover",
      modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"], toImageButtonOptions: { filename: name, scale: 2 },
    });
  };

  const slide = (name) => {
    const { frames, traces } = figures[name];
    const box = document.getElementById(`slider-${name}`);
    const [input, play, text, log] = ["input[type=range]", "button", "output", "input[type=checkbox]"].map((q) => box.querySelector(q));
    let timer = null;
    const go = (index) => {
      const frame = frames[index];
      input.value = index;
      input.setAttribute("aria-valuetext", frame.label);
      text.textContent = [frame.label, frame.detail].filter(Boolean).join(" · ");
      traces[0].y = frame.y;
      Plotly.restyle(`plot-${name}`, { y: [frame.y] }, [0]);
    };
    const stop = () => {
      clearInterval(timer);
      timer = null;
      play.textContent = "Play";
    };
    input.addEventListener("input", () => { stop(); go(Number(input.value)); });
    play.addEventListener("click", () => {
      if (timer !== null) return stop();
      play.textContent = "Pause";
      if (Number(input.value) === frames.length - 1) go(0);
      timer = setInterval(() => {
        const next = Number(input.value) + 1;
        if (next >= frames.length) return stop();
        go(next);
      }, Math.max(60, Math.min(400, 6000 / frames.length)));
    });
    const linear = figures[name].layout.yaxis.range;
    log.addEventListener("change", () => {
      const axis = figures[name].layout.yaxis;
      axis.type = log.checked ? "log" : "linear";
      axis.range = log.checked ? [-0.3, Math.log10(linear[1]) + 0.05] : linear;
      draw(name);
    });
    go(frames.length - 1);
  };

  // -- tables ---------------------------------------------------------------------------------------------------------
  const valueOf = (row, column) => {
    const cell = row.cells[column];
    const value = cell.dataset.value ?? cell.textContent.trim();
    return value === "" ? null : Number.isNaN(Number(value)) ? value : Number(value);
  };
  const compare = (a, b) => (typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b)));
  document.querySelectorAll("table.sortable").forEach((table) => {
    const headings = [...table.tHead.rows[0].cells];
    headings.forEach((heading, column) =>
      heading.querySelector("button").addEventListener("click", () => {
        const down = heading.getAttribute("aria-sort") === "ascending";
        headings.forEach((other) => other.removeAttribute("aria-sort"));
        heading.setAttribute("aria-sort", down ? "descending" : "ascending");
        const rows = [...table.tBodies[0].rows].map((row) => [valueOf(row, column), row]);
        rows.sort(([a], [b]) => (a === null ? 1 : b === null ? -1 : down ? compare(b, a) : compare(a, b)));
        table.tBodies[0].append(...rows.map(([, row]) => row));
      }));
  });
  document.querySelectorAll("button.copy").forEach((button) =>
    button.addEventListener("click", async () => {
      const rows = [...document.getElementById(button.dataset.table).rows];
      const text = rows.map((row) => [...row.cells].map((cell) => cell.dataset.value ?? cell.textContent.trim()).join("\t")).join("\n");
      const say = (words) => { button.textContent = words; setTimeout(() => { button.textContent = "Copy table"; }, 1600); };
      try {
        await navigator.clipboard.writeText(text);
        say("Copied");
      } catch { // a page opened from a file may not write to the clipboard by itself
        const area = document.body.appendChild(Object.assign(document.createElement("textarea"), { value: text }));
        area.select();
        say(document.execCommand("copy") ? "Copied" : "Copy failed");
        area.remove();
      }
    }));

  // -- start ----------------------------------------------------------------------------------------------------------
  const unpack = async () => {
    const packed = Uint8Array.from(atob(document.getElementById("plotly").textContent), (c) => c.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
    const script = document.createElement("script");
    script.textContent = await new Response(stream).text();
    document.head.append(script);
  };
  const start = async () => {
    show(theme);
    try {
      if (Object.keys(figures).length) await unpack();
    } catch (error) {
      document.querySelectorAll(".plot").forEach((place) => {
        place.textContent = "This figure needs a browser of 2023 or later.";
      });
      throw error;
    }
    for (const name of Object.keys(figures)) {
      await draw(name);
      if (figures[name].frames.length) slide(name);
    }
    root.dataset.ready = "yes";
  };
  start();
})();
