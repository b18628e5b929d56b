"""`tools/gpu_check.py`, as far as it runs without a GPU: what becomes of parts that fail, hang or find no time."""

import contextlib
import importlib
import json
import os
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from openmae.cli import parse
from openmae.machine.device import num_cores

from .processes import start

TOOLS = Path(__file__).parents[1] / "tools"
sys.path.append(str(TOOLS))

import gpu_check  # noqa: E402
from gpu_parts import commands, data, end_to_end, gradients, rows, stops, training  # noqa: E402
from gpu_parts.catalogue import MACHINE, PARTS, select_parts  # noqa: E402
from gpu_parts.part import Context, Failed, Part, start_python  # noqa: E402

STUBS = '''
import os, subprocess, sys, time
from gpu_parts.part import Failed

def good(context, value=1.5, seconds=0.0):
    context.note(value=value, began=time.monotonic())
    time.sleep(seconds)
    context.note(ended=time.monotonic())
    print("all is well")
    row = {"case": "c", "peer": "p", "ratio": 2.0, "low": 1.5, "high": 2.5, "ours": [0.01], "theirs": [0.02]}
    context.rows.append({**row, "images_per_second": 1234.0, "share_of_ceiling": 0.4})

def bad(context):
    context.note(seen=7)
    raise Failed("the sky is green")

def crash(context):
    print("these are my last words", flush=True)
    os._exit(9)

def child(context, then="hang"):
    """One child in the part's group, one in a session of its own."""
    pids = [subprocess.Popen(["sleep", "60"], start_new_session=own).pid for own in (False, True)]
    context.note(pids=pids)
    if then == "hang":
        print("waiting for ever", flush=True)
        time.sleep(60)
'''


@pytest.fixture
def stubs(tmp_path, monkeypatch):
    (tmp_path / "stub_parts.py").write_text(STUBS)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")])))


def stub(name, function="good", **changes):
    values = {"group": "stubs", "does": f"does {name}", "limit": 20.0, "expected": 0.0, **changes}
    return Part(name=name, function=f"stub_parts:{function}", **values)


def check(out, *parts, arguments=()):
    """The exit code and the results by name."""
    words = [str(out), "--device", "cpu", "--minutes", "0.5", *arguments]
    code = gpu_check.main(words, parts=parts, machine=stub("machine"))
    return code, {result["name"]: result for result in json.loads((out / "check.json").read_bytes())["parts"]}


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def wait_until(condition, seconds=10.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.usefixtures("stubs")
def test_what_passes_is_in_the_table_with_its_figures(tmp_path, capsys):
    code, results = check(tmp_path / "out", stub("a"), stub("b"), arguments=["--commit", "abc123"])
    assert code == 0
    assert [result["status"] for result in results.values()] == ["passed", "passed"]
    page = (tmp_path / "out" / "check.md").read_text()
    assert "commit abc123" in page
    assert "| a | does a | ok | value 1.5;" in page
    assert "| c | p | 2.00 (1.50 to 2.50) | 10.0 ms | 20.0 ms | 40.0% | 1,234 |" in page
    assert "2 passed" in capsys.readouterr().out
    assert "all is well" in (tmp_path / "out" / "check.log").read_text()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["check.json", "check.log", "check.md"]


@pytest.mark.usefixtures("stubs")
def test_a_part_that_fails_leaves_the_others(tmp_path):
    code, results = check(tmp_path / "out", stub("bad", "bad"), stub("crash", "crash"), stub("good"))
    assert code == 1
    assert {name: result["status"] for name, result in results.items()} == {
        "bad": "failed", "crash": "failed", "good": "passed",
    }  # fmt: skip
    assert (results["bad"]["said"], results["bad"]["figures"]) == ("the sky is green", {"seen": 7})
    assert results["crash"]["said"] == "exit 9: these are my last words"
    assert "the sky is green" in (tmp_path / "out" / "check.md").read_text()


@pytest.mark.usefixtures("stubs")
def test_a_part_that_hangs_is_ended_with_all_its_children(tmp_path):
    code, results = check(tmp_path / "out", stub("hangs", "child", limit=1.0), stub("good"))
    assert code == 1
    assert results["hangs"]["said"] == "given up after 1 s: waiting for ever"
    pids = results["hangs"]["figures"]["pids"]  # what was found before is kept
    assert len(pids) == 2
    wait_until(lambda: not any(map(is_running, pids)), seconds=2.0)
    assert results["good"]["status"] == "passed"


@pytest.mark.usefixtures("stubs")
def test_processes_that_a_part_leaves_behind_are_a_failure(tmp_path, monkeypatch):
    monkeypatch.setattr("gpu_parts.processes.PATIENCE", 0.3)
    code, results = check(tmp_path / "out", stub("leaves", "child", options={"then": "end"}))
    assert code == 1
    assert results["leaves"]["said"] == "left processes behind: sleep 60; sleep 60"
    assert not any(map(is_running, results["leaves"]["figures"]["pids"]))


@pytest.mark.usefixtures("stubs")
def test_what_does_not_fit_into_the_minutes_is_no_time_and_no_failure(tmp_path):
    parts = stub("long", expected=100.0), stub("needs it", after=("long",)), stub("short")
    code, results = check(tmp_path / "out", *parts)
    assert code == 0
    assert [result["status"] for result in results.values()] == ["no time", "no time", "passed"]
    assert "takes about 100 s" in results["long"]["said"]
    assert "| long | does long | no time |" in (tmp_path / "out" / "check.md").read_text()


@pytest.mark.usefixtures("stubs")
def test_where_nothing_ran_nothing_is_proved(tmp_path):
    code, results = check(tmp_path / "out", stub("long", expected=100.0), arguments=["--minutes", "0.2"])
    assert (code, results["long"]["status"]) == (1, "no time")


@pytest.mark.usefixtures("stubs")
def test_at_the_end_of_the_minutes_what_runs_is_ended(tmp_path):
    began = time.monotonic()
    code, results = check(tmp_path / "out", stub("a"), stub("hangs", "child"), arguments=["--minutes", "0.03"])
    assert time.monotonic() - began < 10
    assert results["hangs"]["status"] == "no time"
    assert code == (0 if results["a"]["status"] == "passed" else 1)  # a busy machine may not even get there
    assert not any(map(is_running, results["hangs"]["figures"].get("pids", [])))


@pytest.mark.usefixtures("stubs")
def test_what_needs_a_failed_part_does_not_run(tmp_path):
    code, results = check(tmp_path / "out", stub("bad", "bad"), stub("on it", after=("bad",)))
    assert code == 1
    assert (results["on it"]["status"], results["on it"]["said"]) == ("skipped", "needs bad: failed")


@pytest.mark.skipif(num_cores() < 2, reason="one core")
@pytest.mark.usefixtures("stubs")
def test_parts_run_side_by_side_but_for_one_that_is_alone(tmp_path):
    one, two, alone = stub("one", cores=1), stub("two", cores=1), stub("alone", alone=True)
    parts = [replace(part, options={"seconds": 0.7}) for part in (one, two, alone)]
    _, results = check(tmp_path / "out", *parts, stub("after", cores=1))
    at = {name: (result["figures"]["began"], result["figures"]["ended"]) for name, result in results.items()}
    assert at["one"][0] < at["two"][1]
    assert at["two"][0] < at["one"][1]
    assert at["alone"][0] >= max(at["one"][1], at["two"][1])
    assert at["after"][0] >= at["alone"][1]


@pytest.mark.usefixtures("stubs")
def test_only_goes_on_and_keeps_the_other_results(tmp_path):
    parts = stub("a"), stub("b", "bad"), stub("c", after=("a",))
    code, _ = check(tmp_path / "out", *parts)
    assert code == 1
    mended = parts[0], stub("b", options={"value": 9.0}), parts[2]
    code, results = check(tmp_path / "out", *mended, arguments=["--only", "b"])
    assert code == 0
    assert (results["b"]["status"], results["b"]["figures"]["value"], results["b"]["call"]) == ("passed", 9.0, 1)
    assert (results["a"]["status"], results["a"]["call"]) == ("passed", 0)
    assert "| b | does b | ok (2) |" in (tmp_path / "out" / "check.md").read_text()
    log = (tmp_path / "out" / "check.log").read_text()
    assert "the sky is green" in log
    code, results = check(tmp_path / "out", *mended)  # without it, all begins anew
    assert [result["call"] for result in results.values()] == [0, 0, 0]


def test_only_names_parts_groups_and_patterns_and_takes_what_they_need():
    parts = stub("a"), stub("b", after=("a",)), stub("c", group="others"), stub("b2")

    def names(only, done=()):
        return [part.name for part in select_parts(parts, only, lambda part: part.name in done)]

    assert names(None) == ["a", "b", "c", "b2"]
    assert names(["c", "b"]) == ["c", "a", "b"]
    assert names(["b"], done=["a"]) == ["b"]
    assert names(["b*"]) == ["a", "b", "b2"]
    assert names(["others", "stubs"]) == ["c", "a", "b", "b2"]
    with pytest.raises(ValueError, match="--only got 'd': there are a, b, c, b2"):
        names(["d"])


PROGRAM = """
import sys
sys.path.insert(0, {tools!r})
import gpu_check
from gpu_parts.part import Part
parts = [Part(name=n, group="g", does="d", function="stub_parts:" + f, limit=50, expected=0, alone=True)
         for n, f in (("first", "good"), ("second", "child"), ("third", "good"))]
machine = Part(name="machine", group="g", does="d", function="stub_parts:good", limit=9, expected=0)
sys.exit(gpu_check.main([{out!r}, "--device", "cpu", "--work", {work!r}], parts=tuple(parts), machine=machine))
"""


@pytest.mark.usefixtures("stubs")
@pytest.mark.parametrize("number", [9, 15])
def test_killed_half_way_the_results_are_there_and_no_process_is(tmp_path, number):
    out, work = tmp_path / "out", tmp_path / "work"
    program = PROGRAM.format(tools=str(TOOLS), out=str(out), work=str(work))
    process = subprocess.Popen([sys.executable, "-c", program])
    found = work / "results" / "second.json"

    def pids():
        with contextlib.suppress(OSError, ValueError):
            return json.loads(found.read_bytes())["figures"].get("pids")
        return None

    try:
        wait_until(pids)
        running = pids()
        process.send_signal(number)
        assert process.wait(timeout=10) == (1 if number == 15 else -9)
    finally:
        process.kill()
    results = {result["name"]: result for result in json.loads((out / "check.json").read_bytes())["parts"]}
    assert results["first"]["status"] == "passed"
    assert "| first | d | ok |" in (out / "check.md").read_text()
    if number == 15:
        assert results["second"]["status"] == "no time"
        wait_until(lambda: not any(map(is_running, running)), seconds=3)
    else:  # one of them has a session of its own, and nobody is left to look for it
        wait_until(lambda: not is_running(running[0]), seconds=3)
        with contextlib.suppress(ProcessLookupError):
            os.kill(running[1], 9)


def test_without_a_gpu_one_line_says_so(tmp_path):
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, str(TOOLS / "gpu_check.py"), str(tmp_path / "out"), "--minutes", "1"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=100)
    assert done.returncode == 1
    assert "nothing was checked: torch finds no CUDA device" in done.stderr


def test_the_catalogue_is_whole(capsys):
    names = [part.name for part in PARTS]
    assert len(set(names)) == len(names)
    for number, part in enumerate(PARTS):
        assert set(part.after) <= set(names[:number])
        assert 0 < part.expected < part.limit <= 300
    assert MACHINE.name not in names
    assert gpu_check.main(["--list"]) == 0
    assert [line.split()[1] for line in capsys.readouterr().out.splitlines()] == names


@pytest.mark.usefixtures("stubs")
def test_the_table_keeps_groups_together(tmp_path):
    parts = stub("a", group="one"), stub("b", group="two"), stub("c", group="one")
    check(tmp_path / "out", *parts)
    rows = [line for line in (tmp_path / "out" / "check.md").read_text().splitlines() if "does" in line]
    assert [row.split()[1] for row in rows] == ["a", "c", "b"]


@pytest.mark.usefixtures("stubs")
def test_what_needs_much_memory_is_not_put_off_by_others_that_do(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_check.Schedule, "learn", lambda self, figures: setattr(self, "memory", 40.0))
    sizes = {"first": 30.0, "second": 35.0, "third": 20.0, "small": 2.0}
    parts = [stub(name, memory=size, cores=0, options={"seconds": 0.5}) for name, size in sizes.items()]
    _, results = check(tmp_path / "out", *parts)
    at = {name: result["figures"] for name, result in results.items()}
    assert at["small"]["began"] < at["first"]["ended"] <= at["second"]["began"]
    assert at["second"]["ended"] <= at["third"]["began"]


# --- the real parts, at tiny sizes on the CPU ---------------------------------------------------------------------


class Forked:
    """A command forked from a server that has loaded torch, with the face of `subprocess.Popen`."""

    def __init__(self, words, log, environment):
        (self.process,) = start(words, log)
        self.pid = self.process.pid

    def poll(self):
        return self.process.exitcode

    def send_signal(self, number):
        os.kill(self.pid, number)


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    return tmp_path_factory.mktemp("work")


def walk(work, name):
    """Run a part in this process, behind those that it needs."""
    part = next(part for part in PARTS if part.name == name)
    for needed in part.after:
        if not (work / "results" / f"{needed}.json").exists():
            walk(work, needed)
    context = Context("cpu", work, work / "parts" / name, work / "results" / f"{name}.json", Forked)
    context.here.mkdir(parents=True)
    module, _, function = part.function.partition(":")
    getattr(importlib.import_module(module), function)(context, **part.options)
    context.write()
    return context


BENCHES = [part for part in PARTS if part.function.endswith("rows:bench")]
QUICK = {"pretrain"}  # a second or three
ALIKE = {"gradients-base", "gradients-large", "compile-base-1024"}  # on a CPU they are the same as others
WALKED = [part.name for part in PARTS if part not in BENCHES and part.name not in ALIKE]


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow]) for name in WALKED]
)
def test_a_part_runs_on_a_cpu(work, name):
    context = walk(work, name)
    found = json.loads(context.result.read_bytes())
    assert found["figures"]
    assert "failed" not in found
    if name.startswith("stop-") and name != "stop-twice":
        assert found["figures"]["seconds_to_exit"] < 10


@pytest.mark.slow
def test_benchmarks_are_commands_that_openmae_knows(work):
    for part in BENCHES:
        for words in (f"{part.options['words']} --device cuda", f"{part.options['on_cpu']} --device cpu"):
            parse(["bench", *words.split(), "--json", "rows.json"])
    context = Context("cpu", work, work / "bench", work / "bench.json", Forked)
    context.here.mkdir()
    rows.bench(context, "", on_cpu="asymmetry --case tiny")
    assert context.rows[0]["ratio"] > 0
    assert context.figures["ratios"] == [context.rows[0]["ratio"]]


# --- what must fail does ------------------------------------------------------------------------------------------


def context_of(tmp_path, **changes):
    return Context(**{"device": "cpu", "work": tmp_path, "here": tmp_path, "result": tmp_path / "r.json", **changes})


@pytest.mark.parametrize(
    ("summary", "config", "lines", "said"),
    [
        ({"status": "interrupted", "step": 3}, {"device": "cpu"}, [{"loss": 1.0}], "summary.json says 'interrupted'"),
        ({"status": "complete", "step": 3}, {"device": "cpu"}, [{"loss": 1.0}], "at step 3"),
        ({"status": "complete", "step": 4}, {"device": "cuda"}, [{"loss": 1.0}], "device 'cuda', not 'cpu'"),
        ({"status": "complete", "step": 4}, {"device": "cpu"}, [{"loss": float("nan")}], "metrics.jsonl holds nan"),
        ({"status": "complete", "step": 4}, {"device": "cpu"}, [{"loss": None}], "was not finite"),
        ({"status": "complete", "step": 4}, {"device": "cpu"}, [{"lr": 1.0}], "holds no loss"),
    ],
)
def test_a_run_that_is_not_well_fails(tmp_path, summary, config, lines, said):
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(Failed, match=said):
        commands.is_good_run(context_of(tmp_path), 4)(tmp_path)


@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("print('no such file'); raise SystemExit(2)", "exit 2: no such file"),
        ("print('Traceback (most recent call last): x')", "a traceback in its output"),
        ("import time; print('hm', flush=True); time.sleep(60)", "not ended after 1 s; its last lines: hm"),
    ],
)
def test_a_command_that_does_not_end_well_fails(tmp_path, program, said):
    log = tmp_path / "log"
    process = start_python(["-c", program], log, {})
    try:
        with pytest.raises(Failed, match=re.escape(said)):
            context_of(tmp_path).completed(process, log, limit=1)
    finally:
        process.kill()
        process.wait()


@pytest.mark.slow  # graphs are captured
def test_a_wrong_gradient_of_one_small_tensor_shows(monkeypatch, tmp_path):
    real, seen = gradients.compute_gradients, []

    def wrong(ours):
        found = real(ours)
        seen.append(found)
        if len(seen) == 3:  # the compiled side: one LayerNorm, 2 % of the gradient of all
            found["encoder.norm.weight"] *= 1.5
        return found

    monkeypatch.setattr(gradients, "compute_gradients", wrong)
    with pytest.raises(Failed, match=r"3 times the eager one, in all or in encoder\.norm\.weight"):
        gradients.gradients(context_of(tmp_path), "tiny", 4, "bf16")
    seen.clear()
    with pytest.raises(Failed, match=r"0\.0001, in all or in encoder\.norm\.weight"):
        gradients.gradients(context_of(tmp_path), "tiny", 4, "fp32")


@pytest.mark.slow
def test_a_bad_step_that_moves_the_weights_fails(tmp_path, monkeypatch):
    from openmae.run import step

    def steps_anyway(model, optimizer, real=step.step_if_finite):
        result = real(model, optimizer)
        with torch.no_grad():
            next(model.parameters()).add_(1e-3)
        return result

    monkeypatch.setattr(step, "step_if_finite", steps_anyway)
    with pytest.raises(Failed, match="the weights moved at the bad step"):
        training.not_finite(context_of(tmp_path))


@pytest.mark.slow
def test_losses_that_differ_fail(tmp_path):
    def start_with_seeds(words, log, environment):
        at = words.index("--seed") + 1
        return Forked([*words[:at], "5" if log.stem == "other" else "3", *words[at + 1 :]], log, environment)

    with pytest.raises(Failed, match="the losses differ by"):
        training.losses(context_of(tmp_path, start=start_with_seeds))


@pytest.mark.slow
def test_a_run_that_is_slow_to_end_fails(tmp_path, monkeypatch):
    monkeypatch.setattr(stops, "_at_step", lambda step: lambda process, run, log: stops._last_step(run) >= 2)
    with pytest.raises(Failed, match=r"s from SIGTERM to the end, not at most 0; meanwhile: .*SIGTERM at step"):
        stops._stopped(
            context_of(tmp_path, start=Forked),
            f"{data.labelled(tmp_path)} {commands.TINY} --compile False --log-every 1 --save-every 10000",
            stops._at_step(2),
            limit=0,
        )


def test_waiting_is_weighted_by_time():
    lines = [
        {"step": 10, "images_per_second": 1.0, "data_wait": 1.0},  # where the time begins that is looked at
        {"step": 20, "images_per_second": 100.0, "data_wait": 0.0},
        {"step": 30, "images_per_second": 300.0, "data_wait": 0.8},
    ]
    rate, waiting = end_to_end.rate_of(lines, batch=6)
    assert rate == pytest.approx(120 / 0.8)
    assert waiting == pytest.approx(0.2)
