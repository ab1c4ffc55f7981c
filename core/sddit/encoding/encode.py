"""Encode all images of a data set into a cache of latents, continuing what an earlier call has begun."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open

from sddit.data.codec_record import record_of
from sddit.data.colour_map import ColourFit
from sddit.data.latent_checks import refuse_implausible
from sddit.data.latent_statistics import MomentStatistics
from sddit.data.latent_writing import write_index
from sddit.data.latents import ImageSource, pair_of
from sddit.distributed import processes as placement
from sddit.encoding.shard_plan import (
    EncodingPlan,
    FlipOption,
    ShardRecord,
    begin,
    default_shard_images,
    is_finished,
    read_record,
    remove_records,
)
from sddit.encoding.shards import LAYOUT, ShardEncoder, SourceImages, one_thread, refuse_changed
from sddit.encoding.workers import encode_in_processes
from sddit.errors import SdditError, error
from sddit.interfaces import CodecFacts, CodecParams, ColourMap, DatasetParams, Selected, files_sha256
from sddit.interfaces.params import settings_json
from sddit.plugins.host import registry
from sddit.progress import Progress
from sddit.recipes.encoded_data import encoded_data_of
from sddit.recipes.image_source import component_of_words, dataset_of, recipe_of, settings_in
from sddit.recipes.merge import Merged
from sddit.storage.lock import only_writer
from sddit.storage.run_folder import ensure_directory
from sddit.training.environment import choose_device

MANY_SHARDS = 32  # reading more takes a while
COLOUR_IMAGES = 4096  # that the map to colours is fitted to, at most
COLOUR_WORK = 2**34  # multiplications of that fit, at most


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoding:
    """What is encoded, and how."""

    dataset: Selected[DatasetParams]
    codec: Selected[CodecParams]
    flip: FlipOption = "none"
    licence: str = ""  # of the images, as the user states it
    shard_images: int | None = None  # images of a shard; None: the default of its size
    allow_implausible: bool = False

    def facts(self) -> CodecFacts:
        """Return the facts of the codec. Raises SD-D353 if it only decodes, and the codec's own errors."""
        facts = self.codec.params.facts()
        if not facts.encodes:
            what, expect = "this codec only decodes", "a codec that encodes"
            raise error("SD-D353", what, where="--codec", got=self.codec.component.qualified, expect=expect)
        return facts

    def plan(self, device: str) -> EncodingPlan:
        """Return the plan, without decoding images or loading weights.

        Raises:
            SdditError: for latents in place of images (SD-T943), images that the codec does not take (SD-D353),
                weights that are not the stated ones (SD-D352), or an error of the data set or the codec.
        """
        codec, data = self.facts(), self.dataset.params.facts()
        if data.is_latent:
            what, expect = "these are latents already", "a data set of images"
            raise error("SD-T943", what, where="SOURCE", got=data.source, expect=expect)
        refuse_other_weights(self.codec.params)
        shape = codec.latent_shape((3, *data.image[1:]))
        return EncodingPlan(
            images=ImageSource(
                dataset=self.dataset.component.qualified,
                settings=settings_json(self.dataset.params),
                fingerprint=data.fingerprint,
                domain=data.domain,
                crop=data.crop,
                train=data.train_size,
                test=data.test_size,
                licence=self.licence,
            ),
            class_names=data.class_names,
            codec=record_of(self.codec),
            shape=shape,
            flip=self.flip,
            shard_images=self.shard_images or default_shard_images(shape, self.flip),
            device=f"{device}, torch {torch.__version__}",
        )


def encoding_of(source: Path, words: Sequence[str], *, codec: str | None, **stated: Any) -> Encoding:
    """Return what a command line names.

    Args:
        source: see `sddit.recipes.image_source.dataset_of`; it may be the name of an included data set.
        words: settings `dataset.KEY=VALUE` and `codec.KEY=VALUE`.
        codec: its name; None: that of the recipe which is the source.
        stated: further arguments of `Encoding`.

    Raises:
        SdditError: SD-T943 if no codec is named, and the errors of data set and codec.
    """
    given = settings_in(words, ("dataset", "codec"))
    recipe = recipe_of(source)
    dataset = dataset_of(source, given["dataset"], stated={}, by_name=True)
    if codec is not None:
        chosen = component_of_words("codecs", codec, given["codec"], "codec")
    elif recipe is not None and recipe.codec is not None and not given["codec"]:
        chosen = recipe.codec
    else:
        what, expect = "no codec is named", f"one of {', '.join(one.name for one in registry('codecs'))}"
        raise error("SD-T943", what, where="--codec", expect=expect, fix="--codec NAME, and its codec.KEY=VALUE")
    fingerprinted = Selected(chosen.component, chosen.params.fingerprinted())
    return Encoding(dataset=dataset, codec=fingerprinted, **stated)


def encode_data_of(merged: Merged, *, device: str, progress: Progress) -> None:
    """Encode the images of a recipe with `codec.encode = true`, if that is not done yet.

    Of several processes, the main one encodes, and the others wait for it.
    """
    found = encoded_data_of(merged)
    if found is None or found.is_made:
        return
    if placement.rank() > 0:
        while not found.is_made:
            time.sleep(1)
        return
    progress.note(f"encoding the images of this recipe into {found.path}")
    encoding = Encoding(dataset=found.dataset, codec=found.codec, flip=found.flip)
    encode(encoding, found.path, device=device, processes=default_processes(device), progress=progress)


def default_processes(device: str) -> int:
    """Return one process for each usable core, or for each GPU."""
    return len(os.sched_getaffinity(0)) if device == "cpu" else max(1, torch.cuda.device_count())


def refuse_other_weights(codec: CodecParams) -> None:
    """Raise SD-D352 if the weights are not those whose hash the settings state."""
    files = codec.weight_files()
    if codec.sha256 and files and (found := files_sha256(files)) != codec.sha256:
        what = "the weights of the codec are not the stated ones"
        raise error("SD-D352", what, where="codec.sha256", got=found, expect=codec.sha256)


def encode(encoding: Encoding, out: Path, *, device: str, processes: int, progress: Progress) -> bool:
    """Write the latents of all images to the folder `out`, shard by shard, and its index last.

    Rerun after an interruption, it continues with the shards that are left. On one kind of device and with one version
    of torch, the files are the same at any number of processes and interruptions.

    Args:
        encoding: what is encoded.
        out: a new or empty folder, or one that an earlier call has begun.
        device: `cpu` or `cuda`.
        processes: how many share the shards. On a CPU, each uses one thread.
        progress: where progress is shown.

    Returns whether it was finished before. Raises SdditError as `Encoding.plan` does, SD-D343 and SD-D346 for a folder
    of something else, SD-D342 for a shard that was changed, SD-D354 for images that were, SD-D344 for implausible
    latents, and the errors of the storage.
    """
    chosen, plan = choose_device(device), encoding.plan(device)
    root = ensure_directory(out)
    with only_writer(root):
        if is_finished(root, plan):
            remove_records(root, plan)
            return True
        begin(root, plan)
        records = _finished_shards(root, plan, progress)
        left = [shard for shard in range(plan.shards) if shard not in records]
        if left:
            _encode_shards(encoding, root, plan, left, chosen, processes, progress)
            records = _finished_shards(root, plan, progress)
        refuse_changed(encoding.dataset.params.facts().fingerprint, plan, plan.images.dataset)
        _write_index(encoding, root, plan, [records[shard] for shard in range(plan.shards)])
        remove_records(root, plan)
    return False


def _finished_shards(root: Path, plan: EncodingPlan, progress: Progress) -> dict[int, ShardRecord]:
    """Return the records of finished shards, whose bytes are compared with what was written."""
    found = {}
    if plan.shards > MANY_SHARDS:
        progress.stage("checking", total=plan.shards)
    for shard in range(plan.shards):
        if (record := read_record(root, shard)) is not None:
            found[shard] = record
        progress.tick()
    progress.end_stage()
    return found


def _encode_shards(
    encoding: Encoding,
    root: Path,
    plan: EncodingPlan,
    left: list[int],
    device: torch.device,
    processes: int,
    progress: Progress,
) -> None:
    """Encode the shards that are left, and refuse latents of a wrong scale after the first of them."""
    before = plan.count - sum(len(plan.images_of(shard)) for shard in left)
    progress.stage("encoding", total=plan.count, done=before)
    seen = before
    unchecked = not encoding.allow_implausible

    def advance(images: int) -> None:
        nonlocal seen
        seen += images
        progress.advance(seen, {"images_per_second": (seen - before) / max(progress.elapsed, 1e-9)})

    def finish_shard(shard: int) -> None:
        nonlocal unchecked
        if unchecked and (record := read_record(root, shard)) is not None:
            unchecked = False
            refuse_first_shard(record, plan, encoding.facts().scale, root)

    if processes == 1 or len(left) == 1:
        with one_thread(device):
            encoder = ShardEncoder(plan, encoding.dataset, encoding.codec, device)
            for shard in left:
                encoder.encode(root, shard, advance)
                finish_shard(shard)
    else:
        chosen, count = (encoding.dataset, encoding.codec), min(processes, len(left))

        def hear(message: dict[str, int]) -> None:
            (advance if "images" in message else finish_shard)(*message.values())

        encode_in_processes(count, root, plan, left, chosen, device, hear)
    progress.end_stage()


def refuse_first_shard(record: ShardRecord, plan: EncodingPlan, scale: float, root: Path) -> None:
    """Raise SD-D344 if the latents of a shard are implausible, with the key that corrects their scale."""
    try:
        refuse_implausible(MomentStatistics.from_json(record.statistics), LAYOUT, moments_shape(plan), scale, root)
    except SdditError as refused:
        meant = "rerun, which keeps the shards, with codec.scale="
        fixes = [(problem, problem.fix.replace("scale = ", meant)) for problem in refused.problems]
        raise SdditError(*(replace(problem, fix=fix) for problem, fix in fixes)) from None


def moments_shape(plan: EncodingPlan) -> tuple[int, int, int]:
    """Return the shape (2C, h, w) of the moments of an image."""
    channels, height, width = plan.shape
    return 2 * channels, height, width


def _write_index(encoding: Encoding, root: Path, plan: EncodingPlan, records: Sequence[ShardRecord]) -> None:
    parts = [MomentStatistics.from_json(record.statistics) for record in records]
    facts = encoding.facts()
    write_index(
        root,
        [record.shard for record in records],
        reduce(MomentStatistics.merged, parts),
        shape=moments_shape(plan),
        layout=LAYOUT,
        scale=facts.scale,
        shift=facts.shift,
        allow_implausible=encoding.allow_implausible,
        encoder=plan.codec.name,
        class_names=plan.class_names,
        flip=plan.flip,
        codec=plan.codec,
        images=plan.images,
        colours=_colours(encoding, root, plan, records),
    )


def _colours(encoding: Encoding, root: Path, plan: EncodingPlan, records: Sequence[ShardRecord]) -> ColourMap | None:
    """Fit the map from latents to colours, for previews, to images that are evenly spread over the data set."""
    channels, height, width = plan.shape
    most = min(COLOUR_IMAGES, COLOUR_WORK // (height * width * (channels + 1) ** 2))
    numbers = np.unique(np.linspace(0, plan.count - 1, min(plan.count, max(most, 3))).astype(np.int64))
    images, fit = SourceImages(encoding.dataset, plan), ColourFit(channels, plan.codec.factor)
    pair, at_once = pair_of(plan.flip), images.at_once
    for shard, record in enumerate(records):
        first = plan.images_of(shard).start
        inside = numbers[(numbers >= first) & (numbers < plan.images_of(shard).stop)]
        with safe_open(root / record.shard.file, framework="np") as file:
            moments = file.get_slice("moments")
            for start in range(0, len(inside), at_once):
                chosen = inside[start : start + at_once].tolist()
                rows = [(number - first) * pair for number in chosen]
                latents = np.concatenate([moments[row : row + 1, :channels] for row in rows])
                fit.add(latents, images.pick(chosen).numpy())
    return fit.result()
