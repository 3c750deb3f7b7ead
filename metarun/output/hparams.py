"""TensorBoard's HParams page with the columns of all runs.

Each run tells TensorBoard its own columns, and TensorBoard takes those of one run, whichever it reads first, for all.
Here it gets the union instead: of the scores, the first of every run first, and of the settings, with whether they differ.
"""

import copy
from collections.abc import Iterator, Mapping
from itertools import zip_longest
from typing import Any

from tensorboard.data.provider import TensorTimeSeries
from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2
from tensorboard.plugins.hparams.hparams_plugin import HParamsPlugin

Series = Mapping[str, Mapping[str, Any]]  # by run and tag


class HParamsOfAllRuns(HParamsPlugin):
    """The page's plugin, with a provider of data that merges the columns."""

    def __init__(self, context: Any) -> None:
        own = copy.copy(context)
        own.data_provider = MergedColumns(context.data_provider)
        super().__init__(own)


class MergedColumns:
    """A provider of TensorBoard's data in which every run tells the columns of all."""

    def __init__(self, provider: Any) -> None:
        self.provider = provider

    def __getattr__(self, name: str) -> Any:
        return getattr(self.provider, name)

    def list_tensors(self, ctx: Any, **asked: Any) -> Series:
        """What the provider lists; of the page's own data with the columns of all runs in each."""
        found: Series = self.provider.list_tensors(ctx, **asked)
        told = [tags[metadata.EXPERIMENT_TAG] for tags in found.values() if metadata.EXPERIMENT_TAG in tags]
        if asked.get("plugin_name") != metadata.PLUGIN_NAME or len(told) < 2:
            return found
        experiments = [metadata.parse_experiment_plugin_data(series.plugin_content) for series in told]
        content = _content(experiments, _values(found))
        return {run: {tag: _with(series, tag, content) for tag, series in tags.items()} for run, tags in found.items()}


def _with(series: Any, tag: str, content: bytes) -> Any:
    if tag != metadata.EXPERIMENT_TAG:
        return series
    return TensorTimeSeries(
        max_step=series.max_step,
        max_wall_time=series.max_wall_time,
        plugin_content=content,
        description=series.description,
        display_name=series.display_name,
    )


def _content(experiments: list[Any], values: dict[str, list[Any]]) -> bytes:
    """The union of the columns, as a summary holds it."""
    in_turn = [metric for nth in zip_longest(*(e.metric_infos for e in experiments)) for metric in nth if metric]
    metrics = {(metric.name.group, metric.name.tag): metric for metric in reversed(in_turn)}
    order = dict.fromkeys((metric.name.group, metric.name.tag) for metric in in_turn)
    experiment = api_pb2.Experiment(
        hparam_infos=_settings(experiments, values), metric_infos=[metrics[name] for name in order]
    )
    data = plugin_data_pb2.HParamsPluginData(experiment=experiment, version=metadata.PLUGIN_DATA_VERSION)
    return data.SerializeToString()


def _settings(experiments: list[Any], values: dict[str, list[Any]]) -> Iterator[Any]:
    """Each setting of any run; of the type of its values, or text where these have several."""
    infos: dict[str, list[Any]] = {}
    for info in (info for experiment in experiments for info in experiment.hparam_infos):
        infos.setdefault(info.name, []).append(info)
    for name, its in infos.items():
        types = {info.type for info in its}
        kind = types.pop() if len(types) == 1 else api_pb2.DATA_TYPE_STRING
        found = values.get(name, [])
        differs = len(set(map(str, found))) > 1 or 0 < len(found) < len(experiments)
        info = api_pb2.HParamInfo(name=name, type=kind, differs=differs)
        if kind != api_pb2.DATA_TYPE_FLOAT64:  # a box to tick for each value; the page complains where it knows none
            info.domain_discrete.values.extend(value for _, value in sorted({str(v): v for v in found}.items()))
        yield info


def _values(found: Series) -> dict[str, list[Any]]:
    """What the runs have for each setting."""
    values: dict[str, list[Any]] = {}
    for tags in found.values():
        if metadata.SESSION_START_INFO_TAG in tags:
            content = tags[metadata.SESSION_START_INFO_TAG].plugin_content
            for name, value in metadata.parse_session_start_info_plugin_data(content).hparams.items():
                values.setdefault(name, []).append(value)
    return values
