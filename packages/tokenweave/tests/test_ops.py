"""Operations are records: one that a test adds is planned, priced, run and traced like those that are there."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from support.added_step import PEEK, PEEK_S, peek_is_added, plan_with_peek
from support.patience import PATIENCE_S
from support.wave_tables import linear_table
from tokenweave.cost import CostModel, LinkSpeed
from tokenweave.errors import PlanError
from tokenweave.execute import check_methods, handlers_of, run_sequential
from tokenweave.geometry import BatchGeometry
from tokenweave.lanes import LaneExecutor
from tokenweave.ops import Lane, Op
from tokenweave.phases import Phase, Resource
from tokenweave.plan import Plan, Step, plan_forward
from tokenweave.simulate import simulate
from tokenweave.trace import Recorder, Trace, summarise


class Everything:
    """A method for each operation of a forward pass; each writes down that it ran."""

    def __init__(self) -> None:
        self.ran: list[str] = []

    def embed(self, step: Step) -> None:
        self.ran.append(step.name)

    attention = mlp = reduce_norm = output_head = gather = embed


class EverythingAndPeek(Everything):
    """Meets whoever runs attention: neither goes on before both are inside their step."""

    def __init__(self) -> None:
        super().__init__()
        self.meeting = threading.Barrier(2, timeout=PATIENCE_S)
        self.thread_of: dict[str, str] = {}

    def peek(self, step: Step) -> None:
        self.thread_of[step.name] = threading.current_thread().name
        if step.layer == 1:
            self.meeting.wait()

    def attention(self, step: Step) -> None:
        if step.layer == 0:
            self.meeting.wait()


def test_labels_short_names_and_handlers_are_distinct() -> None:
    for names in ([op.label for op in Op], [op.short for op in Op], [op.handler for op in Op]):
        assert len(set(names)) == len(names) == 11


def test_an_operation_is_found_by_its_label() -> None:
    assert all(Op.named(op.label) is op for op in Op)
    with pytest.raises(ValueError, match="no operation is called 'dance'"):
        Op.named("dance")


def test_the_methods_that_operations_name_are_their_handlers() -> None:
    owner, plan = Everything(), plan_forward(2, 4)
    run_sequential(plan, handlers_of(owner, plan.ops))
    assert owner.ran == [step.name for step in plan.steps]


def test_a_missing_method_is_named() -> None:
    expected = r"no handler for peek: expected a method Everything\.peek\(step\)"
    plan = plan_with_peek(1, 4)
    for owner in (Everything, Everything()):
        with pytest.raises(PlanError, match=expected):
            check_methods(owner, plan.ops)
    with pytest.raises(PlanError, match=expected):
        handlers_of(Everything(), plan.ops)
    check_methods(EverythingAndPeek, plan.ops)


def test_an_added_step_is_in_the_plan_on_its_lane() -> None:
    plan = plan_with_peek(2, 4)
    assert [step.name for step in plan.on(Lane.MEMORY)] == ["peek[0]", "peek[1]"]
    assert plan.places.keys() == set(Lane)
    assert "memory    peek[1]" in str(plan)


@pytest.mark.parametrize("split", [None, 16])
@pytest.mark.parametrize("shared_core", [False, True])
def test_an_added_step_is_priced_and_simulated(split: int | None, shared_core: bool) -> None:
    costs = CostModel(linear_table(), LinkSpeed(1e9, 1e-6))
    plan, before = plan_with_peek(2, 32, split), plan_forward(2, 32, split)
    load = BatchGeometry.prefill(32)
    timeline = simulate(plan, costs.cost_of(plan, load), shared_core=shared_core)
    assert timeline.busy_s[Lane.MEMORY] == pytest.approx(2 * PEEK_S)
    without = simulate(before, costs.cost_of(before, load), shared_core=shared_core)
    for lane in (Lane.COMPUTE, Lane.TRANSFER):
        assert timeline.busy_s[lane] == pytest.approx(without.busy_s[lane])


def test_one_core_runs_one_lane_at_a_time() -> None:
    plan = Plan(1, tuple(Step(op) for op in (Op.MLP, Op.GATHER, PEEK)))
    timeline = simulate(plan, lambda step: (Phase(Resource.CORE, 1.0),), shared_core=True)
    assert timeline.total_s == pytest.approx(3.0)
    ends_s = {each.step.op: each.end_s for each in timeline.intervals}
    assert ends_s == {Op.GATHER: 1.0, PEEK: 2.0, Op.MLP: 3.0}


def test_an_added_step_runs_on_its_lane_while_an_unsplit_pass_computes() -> None:
    owner, plan = EverythingAndPeek(), plan_with_peek(2, 4)
    with LaneExecutor() as executor:
        executor.run(plan, handlers_of(owner, plan.ops))
    assert owner.thread_of == dict.fromkeys(("peek[0]", "peek[1]"), "lane-memory")


def test_an_added_step_is_recorded_written_and_read_back(tmp_path: Path) -> None:
    plan, recorder = plan_with_peek(2, 4), Recorder()
    run_sequential(plan, dict.fromkeys(plan.ops, lambda step: None), recorder.observe(plan))
    Trace.join(recorder, [recorder.to_bytes()]).write(tmp_path / "trace.json")
    with peek_is_added():
        trace = Trace.read(tmp_path / "trace.json")
    (done,) = trace.recordings[0].passes
    assert done.plan == plan
    assert sum(step.op is PEEK for step in done.plan.steps) == 2
    assert [*summarise(trace).layers] == ["embedding", "0", "1", "output"]
