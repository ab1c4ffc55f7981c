"""One recipe on several processes: the weights, averages and logged losses of one process, at any world size."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch._C._distributed_c10d import TCPStore

from sddit.distributed import rendezvous
from sddit.distributed.parallel import reached_parameters
from sddit.distributed.rendezvous import is_peer_failure, join_processes, refuse_differences
from sddit.distributed.world import World, checksum, refuse_drift
from sddit.errors import SdditError
from sddit.testing.toys.plugin import TOY_PAIR_RECIPE

STEPS = 10
DOUBLE = ["train.precision=fp64", f"train.steps={STEPS}", "train.log_every=2"]
ROUNDING = 1e-10  # of weights in float64 after ten steps
LOGGED = 1e-6  # diagnostics are kept in float32

FROZEN = ["loss.frozen.name=frozen", "optimizer.clip=0.01"]
"""A loss with a frozen module, see `frozen_loss.py`."""
SETTINGS = {
    "plain": [],
    "micro-batches": ["train.micro_batch=4"],
    "clipped": ["optimizer.clip=0.01"],
    "each clipped": ["optimizer.clip=0.01", "optimizer.clip_scope=each"],
    "clipped together": ["optimizer.clip=0.01", "optimizer.clip_scope=all"],
    "recomputed": ["train.activation_checkpointing=true"],
    "in parts": ["train.distributed=fsdp", "train.micro_batch=4", "optimizer.clip=0.01"],
    "a frozen target": FROZEN,
    "a frozen target in parts": [*FROZEN, "train.distributed=fsdp"],
    "a term that ends": ["loss.agree.until=4"],  # its head is then without a gradient
    "a term that begins": [
        "loss.agree.weight={start=0.0,end=1.0,shape='step',until=0.5}",
        "optimizer.weight_decay=0.1",
    ],
}
CORRUPTED = {
    "gradients are not averaged": "plain",
    "means are of one rank": "plain",
    "all take the same rows": "plain",
    "untouched gradients stay zero": "a term that begins",
}


@pytest.fixture(scope="module")
def ran(on_ranks: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What came out of every case on two ranks, and under `alone NAME` on one."""
    recipe = tmp_path_factory.mktemp("recipe") / "toy.toml"
    (recipe.parent / "frozen_loss.py").write_bytes((Path(__file__).parent / "frozen_loss.py").read_bytes())
    recipe.write_text('plugins = ["./frozen_loss.py"]\n' + TOY_PAIR_RECIPE + "\n[ema.main]\ndecay = 0.9\nramp = true\n")

    def case(name: str, settings: str, **more: Any) -> dict[str, Any]:
        return {"name": name, "recipe": str(recipe), "overrides": DOUBLE + SETTINGS[settings], "steps": STEPS, **more}

    two = [case(name, name) for name in SETTINGS]
    two += [case(corrupt, settings, defect=corrupt) for corrupt, settings in CORRUPTED.items()]
    two += [case(f"{fault} on one rank", "plain", fault=fault) for fault in ("nan", "signal")]
    begin = [case("one begins", "plain", steps=3)]
    resumed = [case("two continue", "plain", begin="one begins", steps=7)]
    resumed += [case("two continue in parts", "in parts", begin="one begins in parts", steps=7)]
    begin += [case("one begins in parts", "in parts", steps=3)]
    end = [case("one ends", "plain", begin="two continue")]
    found = on_ranks(1, begin) | on_ranks(2, two + resumed)
    end += [case("one ends in parts", "in parts", begin="two continue in parts")]
    end += [case("alone until nan", "plain", steps=3), case("alone until signal", "plain", steps=4)]
    return found | on_ranks(1, end + [case(f"alone {name}", name) for name in SETTINGS])


@pytest.mark.parametrize("name", SETTINGS)
def test_two_processes_end_in_the_weights_of_one(
    name: str, ran: dict[str, Any], drift: Callable[..., float], record_property: Callable[[str, object], None]
) -> None:
    found = drift(ran[f"alone {name}"], ran[name])
    record_property("drift", found)
    assert found < ROUNDING


@pytest.mark.parametrize("corrupt", CORRUPTED)
def test_what_is_corrupted_is_noticed(
    corrupt: str, ran: dict[str, Any], drift: Callable[..., float], record_property: Callable[[str, object], None]
) -> None:
    found = drift(ran[f"alone {CORRUPTED[corrupt]}"], ran[corrupt])
    record_property("drift of a spoilt run", found)
    assert found > 1e3 * ROUNDING


@pytest.mark.parametrize("name", SETTINGS)
def test_two_processes_log_the_rows_of_one(name: str, ran: dict[str, Any], row_drift: Callable[..., float]) -> None:
    assert row_drift(ran[f"alone {name}"], ran[name]) < LOGGED


@pytest.mark.parametrize("parts", ["", " in parts"])
def test_one_two_and_one_process_continue_each_other(
    parts: str, ran: dict[str, Any], drift: Callable[..., float]
) -> None:
    assert drift(ran[f"alone{parts or ' plain'}"], ran[f"one ends{parts}"]) < ROUNDING


def test_gradients_flow_through_what_is_gathered_and_averaged(ran: dict[str, Any], drift: Callable[..., float]) -> None:
    assert drift(ran["coupled on 1"], ran["coupled on 2"]) < 1e-14
    assert float(ran["coupled on 1"][0]["gradient"].abs().max()) > 0.1


@pytest.mark.parametrize("fault", ["nan", "signal"])
def test_all_ranks_stop_after_the_same_step_for_what_one_of_them_saw(
    fault: str, ran: dict[str, Any], drift: Callable[..., float]
) -> None:
    """A NaN at step 3 changes nothing that three steps left; a signal lets that step be finished."""
    assert drift(ran[f"alone until {fault}"], ran[f"{fault} on one rank"]) < ROUNDING


def test_processes_that_are_not_there_are_reported_in_time(monkeypatch: pytest.MonkeyPatch, free_port: int) -> None:
    monkeypatch.setattr(rendezvous, "JOIN", 1.0)
    for name, value in {"RANK": 1, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port}.items():
        monkeypatch.setenv(name, str(value))
    with pytest.raises(SdditError, match="SD-X806"), join_processes(torch.device("cpu"), 1.0):
        pass


def test_the_others_are_waited_for_as_long_as_joining_may_take_not_as_long_as_a_step(
    monkeypatch: pytest.MonkeyPatch, free_port: int
) -> None:
    monkeypatch.setattr(rendezvous, "JOIN", 1.0)
    launcher = TCPStore("127.0.0.1", free_port, is_master=True, wait_for_workers=False)
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    for name, value in {"RANK": 0, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": launcher.port}.items():
        monkeypatch.setenv(name, str(value))
    with pytest.raises(SdditError, match="SD-X806") as refused, join_processes(torch.device("cpu"), 0.01):
        pass
    assert "here/1" in str(refused.value)


def test_a_rank_with_other_facts_is_refused() -> None:
    class Second(World):
        rank, size = 1, 2

        def from_all(self, value: Any) -> list[Any]:
            return [{"recipe": "a"}, value]

    refuse_differences(Second(), {"recipe": "a"})
    with pytest.raises(SdditError, match="SD-X803") as refused:
        refuse_differences(Second(), {"recipe": "b"})
    assert "rank 1 and rank 0 differ in recipe" in str(refused.value)


def test_weights_that_drifted_apart_are_refused() -> None:
    class Second(World):
        rank, size = 1, 2

        def from_all(self, value: Any) -> list[Any]:
            return [checksum(weights), value]

    weights = {"w": torch.ones(3), "names": torch.tensor([1, 2])}
    refuse_drift(Second(), weights)
    with pytest.raises(SdditError, match="SD-X805"):
        refuse_drift(Second(), {**weights, "w": torch.tensor([1.0, 1.0, 1.0 + 2**-23])})
    with pytest.raises(SdditError, match="SD-X805"):
        refuse_drift(Second(), {**weights, "w": torch.tensor([1.0, 1.0, torch.nan])})


@pytest.mark.parametrize("count", [1, 7, 8, 9])
@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_shares_are_all_there_is_in_order_and_even(count: int, size: int) -> None:
    world = World()
    world.size = size
    shares = []
    for world.rank in range(size):
        shares.append(range(count)[world.partition(count)])
    assert [i for share in shares for i in share] == list(range(count))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1 and max(map(len, shares)) == math.ceil(count / size)


@pytest.mark.parametrize("size", [1, 2, 4])
def test_rows_of_a_micro_batch_follow_each_other_by_rank(size: int) -> None:
    world = World()
    world.size = size
    rows = []
    for world.rank in range(size):
        rows += list(range(24)[world.rows(8, 8)])
    assert rows == list(range(8, 16))


def test_reached_are_the_parameters_below_a_loss() -> None:
    used, cut, unused = (torch.nn.Parameter(torch.ones(3)) for _ in range(3))
    loss = (used * cut.detach()).sum() + (used**2).mean()
    assert reached_parameters(loss) == {used}
    assert reached_parameters(loss + 0 * unused.sum()) == {used, unused}


@pytest.mark.parametrize(
    ("fault", "lost"),
    [
        (
            RuntimeError(
                "[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:1"
            ),
            True,
        ),
        (
            RuntimeError("[../gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting 4000ms for recv operation"),
            True,
        ),
        (dist.DistNetworkError("failed to recv, got 0 bytes"), True),
        (RuntimeError("could not restore the stored weights"), False),
        (ValueError("gloo"), False),
    ],
)
def test_a_fault_of_ones_own_is_not_taken_for_a_lost_peer(fault: Exception, lost: bool) -> None:
    assert is_peer_failure(fault) is lost
