"""Of a network before and after fine-tuning the better one is kept, as validation images say."""

from slim.workbench import train
from slim.workbench.run.folder import Run
from slim.workbench.run.networks import Trained, validation_of


class Keeper:
    """What a network was before it was trained on: its weights, and its metric on validation images. It judges nothing
    where there are none, or no labels, and only in the process that saves."""

    def __init__(self, run: Run, network: Trained) -> None:
        self.run, self.network = run, network
        self.value = self._judged()
        if self.value is not None:
            self.weights = {name: tensor.clone() for name, tensor in network.model.state_dict().items()}

    def restore_if_worse(self) -> bool:
        """Give the network its weights back where it was better with them, and say so."""
        tuned, dataset = self._judged(), self.network.dataset
        if self.value is None or tuned is None or dataset is None:
            return False
        metric = dataset.task.metric
        if not metric.is_better(self.value, than=tuned):
            return False
        self.network.model.load_state_dict(self.weights)
        self.run.console.print(
            f"fine-tuning made it worse on validation images ({metric.title} {metric.format(self.value)} → "
            f"{metric.format(tuned)}): the {self.network.stage} network is kept; a lower finetune.lr may do better"
        )
        return True

    def _judged(self) -> float | None:
        dataset = self.network.dataset
        split = validation_of(dataset) if train.is_rank_zero() else None
        if dataset is None or split is None:
            return None
        found = train.evaluate(self.network.model, split, dataset, compute=self.run.settings.compute)
        return found[dataset.task.metric.name]
