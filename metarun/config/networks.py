"""Networks that metarun has not made: exact layers in them, and an execution that is right for them, or a refusal."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace

from torch import nn

from metarun.config.apart import first_split
from metarun.config.episodes_of import check_episodes
from metarun.config.experiment import Experiment
from metarun.config.probe import (
    OFF,
    Trial,
    networks_of,
    reads_all_queries,
    tried,
)
from metarun.config.returned import is_foreign
from metarun.core import FewShotLearner, MetaLearner, TaskDistribution
from metarun.errors import ConfigError, listed
from metarun.evaluation.eval_mode import modules_of
from metarun.execution.execution import Eager, Looped
from metarun.models.exact.replaced import make_exact
from metarun.models.norm_state import norms

NUM_TASKS = 2  # of the trial
# attributes that torch fills; recurrent layers make the last anew, so that it may be out of date
OF_TORCH = ("_modules", "_parameters", "_flat_weights")
FIXES = {  # by a pattern in what torch says
    r"utils\.checkpoint|\bmeta\b(?![-.])": "Weights are read outside of its forward pass, or from a list of its own, where "
    "they are not theta: leave out torch.utils.checkpoint, for which metarun has execution.inner_memory=recomputed, and "
    "read weights in forward, by their names.",
    "scaled_dot_product": "Call it within torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH), or use "
    "nn.MultiheadAttention, which metarun replaces.",
    "cudnn rnn": "Call it within torch.backends.cudnn.flags(enabled=False).",
    "in-place": "Write x = x + 1 for x += 1, ReLU() for ReLU(inplace=True), and give norms track_running_stats=False.",
    "copied": "Keep computed tensors and open files out of its attributes; for weight_norm, use that of "
    "torch.nn.utils.parametrizations.",
    "nothing to train": "Leave requires_grad of a part as it is.",
    "no derivative": "Or use other operations.",
    "not implemented": "Use other operations.",
    "does not require grad": "In a learner take inner gradients by torch.func.grad, for autograd is off in an evaluation; "
    "between theta and the loss leave out detach(), item() and torch.no_grad().",
    "": "Correct it there, or choose another one.",
}
KEPT = {  # by a pattern in the names of what a training step changes
    r"^theta\.": "theta: make new tensors of it, p - inner_lr * g, without .data and in-place operations",
    "running_|num_batches": "norms: track_running_stats=False",
    r"\._[uv]$": "for spectral_norm, take weight_norm or orthogonal of torch.nn.utils.parametrizations",
}
PADDED = (
    "torch's embeddings with padding_idx do that, whose row learns under vmap: leave padding_idx out, and multiply the "
    "embeddings of padding by 0"
)
FUSED = (
    "torch's fused norms with a weight do that: replace F.layer_norm, F.batch_norm, F.instance_norm, and classes derived "
    "from torch's norms, by torch's own modules, for which metarun has exact ones"
)


def exact(network: nn.Module) -> list[str]:
    """Make the layers of ``network`` exact; a line that says what was replaced, if anything was.

    Raises ConfigError where its parameters have no shapes yet, are kept where torch does not find them, or it holds
    complex numbers.
    """
    lazy = [name for name, p in network.named_parameters() if nn.parameter.is_lazy(p)]
    if lazy:
        raise ConfigError(
            [
                f"{type(network).__name__} has parameters without a shape ({', '.join(lazy)}), which torch gives them at "
                "the first input. Use layers with sizes; input_shape and num_outputs are arguments of your network."
            ]
        )
    tensors = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    if complex_ones := [name for name, tensor in tensors.items() if tensor.is_complex()]:
        raise ConfigError(
            [
                f"{type(network).__name__} holds complex numbers ({listed(complex_ones)}), but theta and buffers are of the "
                "run's dtype, real. Hold torch.view_as_real of them, and call torch.view_as_complex in forward."
            ]
        )
    if unseen := _unseen(network):
        raise ConfigError(
            [
                f"{type(network).__name__} keeps weights in a plain list or dict ({listed(unseen)}), where torch does not "
                "find them, so they would never learn. Use nn.ModuleList, nn.ModuleDict, nn.ParameterList; weights that "
                "shall stay as they are: requires_grad_(False)."
            ]
        )
    replaced = make_exact(network)
    counts = ", ".join(f"{count} {kind}" for kind, count in replaced.items())
    what = f"{type(network).__name__}: {counts} of torch replaced by exact layers (docs/base_learners.md)"
    return [what] if replaced else []


def _unseen(network: nn.Module) -> list[str]:
    """The attributes in which ``network`` keeps weights to be trained that are none of its parameters."""
    known, found = {id(p) for p in network.parameters()}, []
    for name, module in network.named_modules():
        for attribute, value in vars(module).items():
            kept = [] if attribute in OF_TORCH else _weights_in(value, set())
            if any(p.requires_grad and id(p) not in known for p in kept):
                found.append(f"{name}.{attribute}".lstrip("."))
    return found


def _weights_in(value: object, within: set[int]) -> Iterator[nn.Parameter]:
    """The parameters in ``value``, and in what it holds; ``within``: what was looked at, for one may hold itself."""
    if id(value) in within:
        return
    within.add(id(value))
    if isinstance(value, nn.Parameter):
        yield value
    elif isinstance(value, nn.Module):
        yield from value.parameters()
    elif isinstance(value, (list, tuple, set, Mapping)):
        for one in value.values() if isinstance(value, Mapping) else value:
            yield from _weights_in(one, within)


def suited(execution: Eager, learner: MetaLearner, task: TaskDistribution, steps: int) -> tuple[Eager, list[str]]:
    """The execution for ``steps`` steps of ``learner`` on ``task``, and lines that say why it is another than was asked for.

    Raises ConfigError where a network or a learner of somebody else cannot be trained, or not as ``execution`` says, and
    where the episodes of somebody's task are none.
    """
    check_episodes(task)
    foreign = foreign_networks(learner)
    if is_foreign(learner):
        foreign = {"meta_learner": type(learner).__name__, **foreign}
    if not foreign:
        return execution, []
    name, keys = ", ".join(foreign.values()), ", ".join(foreign)
    episodes = task.sample(first_split(task), range(NUM_TASKS))
    trial = tried(learner, episodes, steps, vmapped=_loop(execution) != execution)
    if trial.failure:
        fix = next(fix for words, fix in FIXES.items() if re.search(words, trial.failure, re.IGNORECASE))
        raise ConfigError([f"{keys}: there is no meta-gradient through {name}: {trial.failure}. {fix}"])
    if trial.changed:
        what = f"{keys}: a training step of {name} changes {listed(trial.changed)}"
        why = "which no checkpoint keeps and vmapped tasks would not see"
        fixes = [fix for words, fix in KEPT.items() if any(re.search(words, name) for name in trial.changed)]
        raise ConfigError(
            [f"{what}, {why}. {'; '.join(['Compute it from the inputs, or make it a parameter', *fixes])}."]
        )
    if trial.differs:
        why = "is another each time it is computed, of the same episodes, so no run could be resumed or repeated"
        fix = "Draw by torch, not by random or numpy, and keep nothing from call to call"
        raise ConfigError(
            [f"{keys}: the meta-gradient of {name} {why}: it is {trial.differs:.1g} off, relative. {fix}."]
        )
    modules = (module for network in modules_of(learner) for module in network.modules())
    padded = any(getattr(module, "padding_idx", None) is not None for module in modules)
    return _allowed(execution, trial, name, PADDED if padded else FUSED)


def foreign_networks(learner: MetaLearner) -> dict[str, str]:
    """The networks that metarun has not made, by their keys."""
    return {key: type(network).__name__ for key, network in networks_of(learner).items() if is_foreign(network)}


def transductive(experiment: Experiment) -> list[str]:
    """What makes a prediction depend on the other queries that are asked with it, as the beginning of a sentence."""
    learner = experiment.learner
    found = ["batch norms read"] * any(norms(network, "transductive") for network in modules_of(learner))
    if (foreign := foreign_networks(learner)) and isinstance(learner, FewShotLearner):
        task = experiment.task.sample(first_split(experiment.task), [0])
        found += [f"{', '.join(foreign.values())} reads"] * reads_all_queries(learner, experiment.theta_0, task)
    return found


def _loop(execution: Eager) -> Eager | None:
    """The loop among the executions that may be chosen."""
    return next((candidate for candidate in execution.candidates() if isinstance(candidate, Looped)), None)


def _allowed(execution: Eager, trial: Trial, name: str, off: str) -> tuple[Eager, list[str]]:
    """``execution`` where the trial allows it, or its loop, with lines that say why; ``off``: what makes it inexact."""
    notes = []
    if trial.draws and execution.inner_memory != "stored":
        why = f"{name} draws random numbers, and a step that is computed again would draw different ones"
        if execution.inner_memory == "recomputed":
            fix = "Use stored; for dropout, nn.Dropout, which metarun replaces"
            raise ConfigError([f"execution.inner_memory=recomputed: {why}. {fix}."])
        execution = replace(execution, inner_memory="stored")
        notes.append(f"execution.inner_memory: stored, because {why}")
    loop = _loop(execution)
    if not trial.not_vmapped or loop == execution:
        return execution, notes
    why = f"{name} cannot be vmapped: {trial.not_vmapped}"
    why += f" ({off})" if OFF in trial.not_vmapped else ""
    if loop is None:
        raise ConfigError([f"execution: {why}. Use execution=looped, or execution=auto, which then loops."])
    return loop, [*notes, f"execution: looped, because {why}"]
