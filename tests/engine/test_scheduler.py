"""Plans carried out: early cutoff, branches, failures, checks, two processes, ^C."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import mkdtemp
from textwrap import dedent
from threading import Barrier, BrokenBarrierError, Event, get_ident
from threading import enumerate as all_threads
from time import monotonic, sleep

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kolm_build.core.derivation import Derivation, OutputInput
from kolm_build.core.digest import Digest
from kolm_build.engine.events import Built, Failed, Reused
from kolm_build.engine.protocol import BuildResult
from kolm_build.engine.scheduler import plan_for, realise
from kolm_build.errors import (
    Exit,
    GateFailedError,
    NotReproducibleError,
    StepFailedError,
)
from kolm_build.store.local import LocalStore
from tests.engine.steps import code, derivation, folder

CODE = Digest.of_blob(b"code")


def fake(name: str, *needs: Derivation, **params) -> Derivation:
    inputs = {
        f"in-{index}": OutputInput(derivation=need.digest, output="out")
        for index, need in enumerate(needs)
    }
    return derivation(CODE, name=name, inputs=inputs, params={"name": name} | params)


def graph(*nodes: Derivation) -> dict[Digest, Derivation]:
    return {node.digest: node for node in nodes}


def out(node: Derivation) -> OutputInput:
    return OutputInput(derivation=node.digest, output="out")


Make = Callable[[Derivation, list[str]], str]


def plainly(resolved: Derivation, texts: list[str]) -> str:
    """The text a fake node makes: all it depends on."""
    return repr((resolved.params, texts))


@dataclass
class FakeBuilder:
    """Makes one text an output, from the inputs' texts; counts what it built."""

    store: LocalStore
    tmp: Path
    make: Make = plainly
    built: list[str] = field(default_factory=list)
    stopped: bool = False

    def build(self, derivation: Derivation, resolved: Derivation, on_event) -> BuildResult:
        texts = [text(self.store, value.content) for _, value in resolved.inputs]
        made = self.make(resolved, texts)
        self.built.append(derivation.name)
        place = Path(mkdtemp(dir=self.tmp))
        (place / "text").write_text(made)
        content = self.store.ingest(place)
        return BuildResult(
            contents={name: content for name, _ in resolved.outputs},
            circumstances={"sandbox": "none"},
            fetched=False,
            wall_ms=1,
        )

    def stop(self) -> None:
        self.stopped = True


def text(store: LocalStore, tree: Digest) -> str:
    return store.read_blob(dict(store.tree(tree).entries)["text"].b3).decode()


@pytest.fixture
def fakes(store, tmp_path):
    return FakeBuilder(store, tmp_path)


def run(store, builder, nodes, *wanted, **options):
    seen = []
    options = {"jobs": 1, "on_event": seen.append} | options
    realised = realise(
        [out(node) for node in wanted], derivations=nodes, store=store, builder=builder, **options
    )
    return realised, seen


def test_a_second_build_builds_nothing(store, fakes):
    a = fake("a")
    b = fake("b", a)
    first, _ = run(store, fakes, graph(a, b), b)
    assert fakes.built == ["a", "b"]
    second, seen = run(store, fakes, graph(a, b), b)
    assert fakes.built == ["a", "b"]
    assert second.contents == first.contents
    assert seen == [Reused(node="b", contents={"out": first.contents[out(b)]})]
    assert second.actions == {b.digest: "reused"}
    assert first.keys[b.digest] in {claim.realisation.resolved for claim in store.realisations(
        first.keys[b.digest], "out")}  # fmt: skip


def test_equal_bytes_above_cut_off_what_is_below(store, tmp_path):
    """ENG-3. A node whose inputs come out with the same bytes MUST NOT be built again."""

    def make(resolved, texts):
        return "same" if resolved.name == "a" else plainly(resolved, texts)

    builder = FakeBuilder(store, tmp_path, make)
    a = fake("a")
    b = fake("b", a)
    c = fake("c", b)
    run(store, builder, graph(a, b, c), c)
    a2 = fake("a", edited=1)
    b2 = fake("b", a2)
    c2 = fake("c", b2)
    realised, seen = run(store, builder, graph(a2, b2, c2), c2)
    assert builder.built == ["a", "b", "c", "a"]
    assert [(type(event), event.node) for event in seen] == [
        (Built, "a"), (Reused, "b"), (Reused, "c"),
    ]  # fmt: skip
    assert all(event.cut_off for event in seen[1:])
    assert realised.actions == {a2.digest: "built", b2.digest: "cut-off", c2.digest: "cut-off"}


def test_nodes_that_differ_in_name_only_are_one(store, fakes):
    a = derivation(CODE, name="a")
    b = derivation(CODE, name="b")
    run(store, fakes, graph(a), a)
    run(store, fakes, graph(b), b)
    assert fakes.built == ["a"]


def test_what_nothing_needs_is_not_built_though_it_is_gone(store, fakes):
    a = fake("a")
    b = fake("b", a)
    first, _ = run(store, fakes, graph(a, b), b)
    store.add_root("b", trees=[first.contents[out(b)]])
    gone = first.contents[out(a)]
    root = store.root
    store.close()
    with LocalStore.open(root) as again:
        again.collect(dry_run=False)
        assert not again.has_tree(gone)
        builder = FakeBuilder(again, fakes.tmp)
        run(again, builder, graph(a, b), b)
        assert builder.built == []


def test_the_dry_run_prints_what_would_run(store, fakes):
    """ENG-2. The plan that `--dry-run` prints MUST be the one that would be carried out."""
    a = fake("a")
    b = fake("b", a)
    nodes = graph(a, b)
    plan = plan_for([out(b)], derivations=nodes, store=store)
    assert [action.name for action in plan.builds] == ["a", "b"]
    run(store, fakes, nodes, b)
    assert plan_for([out(b)], derivations=nodes, store=store).builds == ()


def collecting(root: Path) -> Make:
    """Makes a node's text after somebody has collected; a head makes the same text at once."""

    def make(resolved, texts):
        if resolved.name == "head":
            return "same"
        with LocalStore.open(root) as collector:
            collector.collect(dry_run=False)
        return plainly(resolved, texts)

    return make


def test_a_collection_beside_a_build_spares_what_the_plan_reuses(store, fakes):
    """STORE-20: nothing but the running build keeps it."""
    old, between = fake("old"), fake("between")
    last = fake("last", old, between)
    nodes = graph(old, between, last)
    run(store, fakes, nodes, old)
    root = store.root
    store.close()
    with LocalStore.open(root) as again:
        builder = FakeBuilder(again, fakes.tmp, collecting(root))
        run(again, builder, nodes, last)
        assert builder.built == ["between", "last"]


def test_a_collection_beside_a_build_spares_what_was_cut_off(store, fakes):
    """STORE-20: found on the way, after the plan was made."""
    head = fake("head")
    body = fake("body", head)
    root = store.root
    run(store, FakeBuilder(store, fakes.tmp, collecting(root)), graph(head, body), body)
    store.close()
    head2 = fake("head", edited=1)
    body2 = fake("body", head2)
    between = fake("between", body2)
    last = fake("last", body2, between)
    with LocalStore.open(root) as again:
        builder = FakeBuilder(again, fakes.tmp, collecting(root))
        run(again, builder, graph(head2, body2, between, last), last)
        assert builder.built == ["head", "between", "last"]


def test_independent_branches_run_at_once(store, tmp_path):
    meet = Barrier(2)

    def make(resolved, texts):
        if resolved.name in ("a", "b"):
            meet.wait(20)
        return plainly(resolved, texts)

    a, b = fake("a"), fake("b")
    c = fake("c", a, b)
    builder = FakeBuilder(store, tmp_path, make)
    run(store, builder, graph(a, b, c), c, jobs=2)
    assert builder.built[2:] == ["c"]


def test_one_job_runs_one_step_at_a_time(store, tmp_path):
    """ENG-4. At most `jobs` steps MUST run at once."""
    meet = Barrier(2)

    def make(resolved, texts):
        with pytest.raises(BrokenBarrierError):
            meet.wait(0.05)
        meet.reset()
        return plainly(resolved, texts)

    a, b = fake("a"), fake("b")
    run(store, FakeBuilder(store, tmp_path, make), graph(a, b), a, b, jobs=1)


def test_a_failure_stops_what_needs_it_and_nothing_else(store, tmp_path):
    """ENG-6. Branches that do not need what failed MUST be finished; exit bits are OR-ed."""

    def make(resolved, texts):
        if resolved.name == "bad":
            raise StepFailedError("bad")
        if resolved.name == "gate":
            raise GateFailedError("gate")
        return plainly(resolved, texts)

    bad, good, gate = fake("bad"), fake("good"), fake("gate")
    after_bad, after_good = fake("after-bad", bad), fake("after-good", good)
    builder = FakeBuilder(store, tmp_path, make)
    nodes = graph(bad, good, gate, after_bad, after_good)
    seen = []
    with pytest.raises(StepFailedError) as caught:
        run(store, builder, nodes, after_bad, gate, after_good, on_event=seen.append)
    assert builder.built == ["good", "after-good"]
    assert caught.value.exit == Exit.BUILD | Exit.GATE
    assert {event.node for event in seen if isinstance(event, Failed)} == {"bad", "gate"}


def test_a_check_finds_a_difference_and_keeps_both(store, tmp_path):
    """ENG-7. A check MUST name the node, the output and the first file that differ."""
    counter = iter(range(10))
    builder = FakeBuilder(store, tmp_path, lambda _resolved, _texts: f"{next(counter)}")
    a = fake("a")
    first, _ = run(store, builder, graph(a), a)
    with pytest.raises(NotReproducibleError) as caught:
        run(store, builder, graph(a), a, mode="check")
    assert caught.value.where == "a.out"
    assert "first in text" in caught.value.reason
    assert caught.value.expected == str(first.contents[out(a)])
    assert store.has_tree(Digest.parse(caught.value.actual))
    assert caught.value.exit == Exit.NOT_REPRODUCIBLE


def test_a_contested_output_is_an_alarm(store, tmp_path):
    """ENG-8. Two contents for one derivation MUST fail every build that needs it."""
    counter = iter(range(10))
    builder = FakeBuilder(store, tmp_path, lambda _resolved, _texts: f"{next(counter)}")
    a = fake("a")
    run(store, builder, graph(a), a)
    with pytest.raises(NotReproducibleError):
        run(store, builder, graph(a), a, mode="check")
    with pytest.raises(NotReproducibleError):
        run(store, builder, graph(a), a)


def test_a_check_of_equal_bytes_says_verified(store, fakes):
    a = fake("a")
    b = fake("b", a)
    run(store, fakes, graph(a, b), b)
    realised, seen = run(store, fakes, graph(a, b), b, mode="check")
    assert fakes.built == ["a", "b", "a", "b"]
    assert [event.verified for event in seen] == [True, True]
    assert set(realised.actions.values()) == {"verified"}
    assert len(store.realisations(realised.keys[b.digest], "out")) >= 1


def test_a_check_does_not_fetch_again_what_a_digest_fixes(store, fakes, tmp_path):
    content = folder(store, tmp_path, {"text": "fixed"})
    a = derivation(CODE, name="a", outputs={"out": content})
    run(store, fakes, graph(a), a, mode="check")
    assert fakes.built == []


def test_a_rebuild_after_loss_must_agree_with_the_claim(store, tmp_path):
    """ENG-9. Outputs that are lost and built again MUST be compared with what they were."""
    builder = FakeBuilder(store, tmp_path, lambda *_: "first")
    a = fake("a")
    run(store, builder, graph(a), a)
    root = store.root
    store.close()
    with LocalStore.open(root) as again:
        again.collect(dry_run=False)
        other = FakeBuilder(again, tmp_path, lambda *_: "second")
        with pytest.raises(NotReproducibleError):
            run(again, other, graph(a), a)


def test_a_planted_nondeterminism_is_found_in_the_sandbox(store, builder, tmp_path):
    body = "put('text', os.urandom(8).hex()); put('same', 'same')"
    a = derivation(code(store, tmp_path, body), name="a")
    run(store, builder, graph(a), a)
    with pytest.raises(NotReproducibleError, match="first in text"):
        run(store, builder, graph(a), a, mode="check")


def test_the_first_tensor_that_differs_is_named(store, tmp_path):
    from kolm_build.core.safetensors import encode_header

    tensors = [("a", "U8", (4,)), ("b", "U8", (4,))]
    header = encode_header(tensors, {})

    def weights(data: bytes) -> Digest:
        place = tmp_path / f"w-{data.hex()}"
        place.mkdir()
        (place / "model.safetensors").write_bytes(header + data)
        return store.ingest(place)

    contents = iter([weights(b"aaaabbbb"), weights(b"aaaabbbc")])

    class Weights(FakeBuilder):
        def build(self, derivation, resolved, on_event):
            return BuildResult(
                contents={"out": next(contents)}, circumstances={}, fetched=False, wall_ms=0
            )

    a = fake("a")
    builder = Weights(store, tmp_path)
    run(store, builder, graph(a), a)
    with pytest.raises(NotReproducibleError, match=r"model\.safetensors, tensor b"):
        run(store, builder, graph(a), a, mode="check")


DAGS = st.lists(
    st.tuples(st.integers(0, 3), st.sets(st.integers(0, 7), max_size=3)), min_size=1, max_size=8
)


class TestTheEngineAgreesWithABusyBuilder:
    """ENG-1. What the engine gives MUST be what building everything every time gives."""

    @settings(
        max_examples=15,
        suppress_health_check=[HealthCheck.function_scoped_fixture],
    )
    @given(st.lists(DAGS, min_size=1, max_size=3), st.integers(1, 3))
    def test_on_any_graph_however_much_is_there_already(self, store, tmp_path, dags, jobs):
        for dag in dags:
            nodes = self.nodes(dag)
            builder = FakeBuilder(store, tmp_path, self.make)
            realised, _ = run(store, builder, graph(*nodes), *nodes, jobs=jobs)
            for node in nodes:
                made = text(store, realised.contents[out(node)])
                assert made == self.busy(node, graph(*nodes))
            assert len(builder.built) == len(set(builder.built))

    @staticmethod
    def make(resolved: Derivation, texts: list[str]) -> str:
        # Few values, so that edits above often come out the same: early cutoff is exercised.
        return str((sum(map(int, texts)) + dict(resolved.params)["value"]) % 3)

    def busy(self, node: Derivation, nodes: dict[Digest, Derivation]) -> str:
        texts = [self.busy(nodes[need.derivation], nodes) for need in node.needs]
        return self.make(node, texts)

    @staticmethod
    def nodes(dag) -> list[Derivation]:
        nodes: list[Derivation] = []
        for index, (value, needs) in enumerate(dag):
            below = [nodes[need] for need in sorted(needs) if need < index]
            nodes.append(fake(f"n{index}", *below, value=value))
        return nodes


PROGRAM = """
import sys
from pathlib import Path
from kolm_build.core.derivation import OutputInput
from kolm_build.core.digest import Digest
from kolm_build.engine.builder import SandboxBuilder
from kolm_build.engine.scheduler import realise
from kolm_build.engine.sandbox import Surroundings
from kolm_build.store.local import LocalStore
from tests.engine.steps import SHAPES, derivation

with LocalStore.open(Path(sys.argv[1])) as store:
    drv = derivation(Digest.parse(sys.argv[2]), name="slow")
    builder = SandboxBuilder(store=store, steps=SHAPES, environments=lambda _: Surroundings())
    def say(event):
        print(event.to_value(), flush=True)
    try:
        realise([OutputInput(derivation=drv.digest, output="out")], derivations={drv.digest: drv},
                store=store, builder=builder, on_event=say)
    except KeyboardInterrupt:
        print("interrupted", flush=True)
        sys.exit(130)
"""


def start(store: LocalStore, step: Digest) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", dedent(PROGRAM), str(store.root), str(step)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )


def test_of_two_processes_one_builds_and_the_other_waits(store, tmp_path):
    """ENG-5. Of two builds of one thing one MUST wait and use what the other made."""
    step = code(store, tmp_path, "import time; say(event='log', text='x'); time.sleep(1.5)")
    first = start(store, step)
    assert "started" in first.stdout.readline()
    second = start(store, step)
    said = [process.communicate(timeout=60)[0] for process in (first, second)]
    assert (first.returncode, second.returncode) == (0, 0)
    assert "'built'" in said[0]
    assert "'built'" not in said[1]
    assert f"process {first.pid}, which builds slow" in said[1]
    assert "'reused'" in said[1]


def test_an_interrupt_ends_the_step_and_leaves_the_store_whole(store, tmp_path):
    """ENG-10. ^C MUST end every step process; the build can be taken up again."""
    body = "import time; say(event='log', text='x'); time.sleep(float(params.get('s', 600)))"
    step = code(store, tmp_path, body)
    process = start(store, step)
    process.stdout.readline()
    process.stdout.readline()
    began = monotonic()
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=30)
    assert said.endswith("interrupted\n")
    assert process.returncode == 130
    assert monotonic() - began < 10
    sleep(0.1)
    assert not children_of(process.pid)
    assert store.fsck().is_clean


def test_a_signal_that_another_thread_receives_ends_the_build_at_once(store, tmp_path):
    """ENG-10. The thread that waits is woken by no such signal, nor by one just before it waits."""
    told, in_time = Event(), []

    class Signalled(FakeBuilder):
        def build(self, derivation, resolved, on_event):
            signal.pthread_kill(get_ident(), signal.SIGINT)
            in_time.append(told.wait(timeout=30))
            raise StepFailedError("stopped")

        def stop(self):
            super().stop()
            told.set()

    builder = Signalled(store, tmp_path)
    node = fake("a")
    with pytest.raises(KeyboardInterrupt):
        run(store, builder, graph(node), node)
    # The thread is left behind, as the process would end; here the store goes on to be closed.
    for thread in [one for one in all_threads() if one.name == node.name]:
        thread.join(timeout=30)
    assert in_time == [True]


def children_of(pid: int) -> list[str]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(stat[1]) == pid:
                found.append(entry.name)
    return found


def test_a_killed_build_is_taken_up_by_the_next(store, tmp_path):
    step = code(store, tmp_path, "import time; say(event='log', text='x'); time.sleep(1)")
    process = start(store, step)
    process.stdout.readline()
    process.stdout.readline()
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=30)
    again = start(store, step)
    said, _ = again.communicate(timeout=60)
    assert again.returncode == 0
    assert "'built'" in said
