"""The sandbox around programs: verdicts, values that cross, limits, refusal, and what is left afterwards.

Hostile programs are in ``test_attacks.py``; here nothing is run outside a sandbox but harmless lines.
"""

import errno
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter, OrderedDict, deque, namedtuple
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from bitdistiller.cli import app
from bitdistiller.errors import UserError
from bitdistiller.sandbox import Limits, Outcome, Worker, run_many, run_program
from bitdistiller.sandbox.inside import calls, kernel, wire
from bitdistiller.sandbox.inside.judge import undefined_names
from tests.isolation import needs_isolation

pytestmark = needs_isolation

HEADERS = {"x86_64": "x86_64-linux-gnu/asm/unistd_64.h", "aarch64": "asm-generic/unistd.h"}
SLEEP = "import time\ndef f(): time.sleep(1000)"


@pytest.fixture(scope="module")
def worker():
    with Worker(Limits()) as worker:
        yield worker


def processes(mark: str) -> list[int]:
    """Processes whose command line holds a text; those forked from a worker keep its."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and mark.encode() in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return sorted(found)


def wait_until(condition, seconds=20.0):
    """The first true value of a condition, or its last."""
    deadline = time.monotonic() + seconds
    while not (value := condition()) and time.monotonic() < deadline:
        time.sleep(0.02)
    return value


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.parametrize("source, tests, verdict, detail", [
    ("def f(x): return x + 1", "assert f(1) == 2", "passed", ""),
    ("def f(x): return x", "assert f(1) == 2", "failed", r"assertion failed, test line 1: assert f\(1\) == 2"),
    ("def f(x): return x", "\nassert f(1) == 2, 'one more'", "failed", "one more, test line 2: .*"),
    ("def f(x):\n    return x / 0", "assert f(1) == 2", "error", "ZeroDivisionError: division by zero, line 2 .*"),
    ("def f(x): return None", "assert abs(f(1) - 2) < 1", "error", "TypeError: unsupported operand.*test line 1.*"),
    ("def f(x) return x", "assert f(1) == 2", "error", "SyntaxError: expected ':'.*line 1 of the program"),
    ("def g(x): return x", "assert f(1) == 2", "error", "NameError: the program defines no 'f'"),
    ("def f(x): assert x > 1", "assert f(1) == 2", "error", "AssertionError: , line 1 of the program"),
    ("f = 3", "assert f(1) == 2", "error", "TypeError: 'int' object is not callable"),
    ("print('no function')", "", "passed", ""),
])  # fmt: skip
def test_verdict_and_its_reason(worker, source, tests, verdict, detail):
    outcome = worker.run(source, tests)
    assert (outcome.verdict, outcome.passed) == (verdict, verdict == "passed")
    assert re.fullmatch(detail, outcome.detail)


def test_what_a_program_prints_is_kept_up_to_a_few_kilobytes(worker):
    outcome = worker.run("import sys\nprint('é')\nprint('beside', file=sys.stderr)\nprint('x' * 9000)", "")
    assert outcome.verdict == "passed"
    assert "é\n" in outcome.output and "beside\n" in outcome.output
    assert 4000 < len(outcome.output) <= 4096


def test_what_is_shown_cannot_steer_a_terminal(worker):
    outcome = worker.run("print('a\\x1b]0;title\\x07\\tb\\r')\nraise ValueError('\\x1b[2J')", "")
    assert outcome.output == "a\ufffd]0;title\ufffd\tb\ufffd\n"
    assert outcome.detail.startswith("ValueError: \ufffd[2J")


def test_tests_that_hang_on_a_result_are_ended_from_outside(worker, monkeypatch):
    """One C call that looks at no signal, so that the judge cannot end it itself."""
    monkeypatch.setattr("bitdistiller.sandbox.run._GRACE_SECONDS", 1.0)
    with Worker(Limits(seconds=0.625)) as worker:
        assert worker.run("def f(): return 10**12", "sum(range(f()))").verdict == "timeout"
        assert processes('"seconds": 0.625') == []
        assert worker.run("", "").verdict == "passed"


def test_functions_keep_their_state_between_calls_and_none_between_programs(worker):
    source = (
        "import os\nseen = []\ndef f(x):\n    seen.append(x)\n    open('mark', 'a').write('x')\n    return len(seen)"
    )
    tests = "assert [f(1), f(2)] == [1, 2]\nassert files() == ['mark']"
    source += "\ndef files(): return os.listdir('.')"
    assert [worker.run(source, tests).verdict for _ in range(2)] == ["passed", "passed"]


def test_chance_and_order_are_the_same_every_time(worker):
    source = "import random\ndef f(): return [random.random(), list({'a', 'b', 'c', 'd', 'e'}), hash('text')]"
    seen = [worker.run(source, "import random\nraise ValueError([f(), random.random()])").detail for _ in range(2)]
    with Worker(Limits()) as other:
        seen.append(other.run(source, "import random\nraise ValueError([f(), random.random()])").detail)
    assert "0." in seen[0] and len(set(seen)) == 1


def test_tests_may_catch_the_exceptions_that_a_function_should_raise(worker):
    tests = "try:\n    f()\nexcept KeyError as error:\n    assert 'b' in str(error)\nelse:\n    assert False"
    assert worker.run("def f(): return {}['b']", tests).verdict == "passed"
    assert worker.run("def f(): return {}", tests).verdict == "failed"


def test_tests_use_their_own_helpers_even_if_the_program_has_some_of_that_name(worker):
    tests = "def helper(x): return x\nassert f(2) == helper(2)"
    assert worker.run("def helper(x): return 0\ndef f(x): return x", tests).verdict == "passed"
    assert worker.run("def helper(x): return 0\ndef f(x): return helper(x)", tests).verdict == "failed"


@pytest.mark.parametrize("source, names", [
    ("assert f(1)", ["f"]),
    ("import math\nassert math.pi == f.g(len('x'))", ["f"]),
    ("def check(c):\n    y = c(1)\n    return y\ncheck(f)", ["f"]),
    ("def check():\n    global made\n    made = f()\nmade", ["f"]),
    ("class A:\n    x = f()\n    def g(self): return [h(n) for n in self]", ["f", "h"]),
    ("f = 1\nf", []),
])  # fmt: skip
def test_undefined_names(source, names):
    assert undefined_names(source) == names


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.integers(-(10**60), 10**60) | st.floats(allow_nan=False)
    | st.text(st.characters()) | st.binary() | st.complex_numbers(allow_nan=False) | st.fractions()
    | st.decimals(allow_nan=False) | st.builds(range, st.integers(), st.integers(), st.integers(1, 5)),
    lambda inner: st.lists(inner) | st.lists(inner).map(tuple)
    | st.dictionaries(st.text() | st.integers() | st.tuples(st.text()), inner)
    | st.sets(st.integers() | st.text()) | st.frozensets(st.booleans() | st.text()),
    max_leaves=8,
)  # fmt: skip
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(st.sampled_from([*wire._CONTAINERS, "dict", "int", "bytes", "complex", "range", "fraction",
                                       "decimal", "other", "new"]), inner, max_size=2),
    max_leaves=12,
)  # fmt: skip
EXACT = {type(None), bool, int, float, str, bytes, bytearray, complex, list, tuple, set, frozenset, dict, range,
         Fraction, Decimal, wire.Opaque}  # fmt: skip


def parts(value):
    """A value and everything inside it."""
    yield value
    inside = [*value, *value.values()] if isinstance(value, dict) else value
    for item in inside if isinstance(inside, list | tuple | set | frozenset) else ():
        yield from parts(item)


@given(value=PLAIN)
def test_plain_values_cross_unchanged(value):
    crossed = wire.decode(json.loads(json.dumps(wire.encode(value))))
    assert crossed == value
    assert Counter(map(type, parts(crossed))) == Counter(map(type, parts(value)))


@given(message=JSON)
def test_whatever_is_received_becomes_plain_values_or_is_refused(message):
    try:
        value = wire.decode(message)
    except wire.MalformedError:
        return
    assert {type(part) for part in parts(value)} <= EXACT


@pytest.mark.parametrize("value, becomes", [
    (Counter("aab"), {"a": 2, "b": 1}),
    (OrderedDict(a=1), {"a": 1}),
    (namedtuple("Point", "x y")(1, 2), (1, 2)),
    (signal.SIGINT, 2),
])  # fmt: skip
def test_variants_of_plain_types_become_plain(value, becomes):
    crossed = wire.decode(wire.encode(value))
    assert (crossed, type(crossed)) == (becomes, type(becomes))


def test_other_values_equal_nothing_but_keep_text_and_items():
    crossed = wire.decode(wire.encode(deque([1, (2,)])))
    assert crossed not in ([1, (2,)], deque([1, (2,)]))
    assert (str(crossed), list(crossed)) == ("deque([1, (2,)])", [1, (2,)])
    assert list(wire.decode(wire.encode(n * n for n in range(3)))) == [0, 1, 4]
    with pytest.raises(TypeError, match="Exception object is not iterable"):
        list(wire.decode(wire.encode(Exception("x"))))


def test_an_iterator_without_end_crosses_without_its_items():
    from itertools import count

    with pytest.raises(TypeError, match="count object is not iterable"):
        list(wire.decode(wire.encode(count())))


def run_filter(machine: str, number: int, first: int = 0, architecture: int | None = None) -> int:
    """What the seccomp filter returns for a call: a small interpreter of its four instructions."""
    data = {0: number, 4: calls._AUDIT_ARCH[machine] if architecture is None else architecture, 16: first & 0xFFFFFFFF}
    code, at, loaded = calls._filter(machine), 0, 0
    tests = {0x15: lambda k: loaded == k, 0x35: lambda k: loaded >= k, 0x45: lambda k: bool(loaded & k)}
    while True:
        kind, yes, no, k = code[at]
        if kind == 0x06:
            return k
        if kind == 0x20:
            loaded = data[k]
        at += 1 + ((yes if tests[kind](k) else no) if kind in tests else 0)


ALLOW, EPERM, ENOSYS = 0x7FFF0000, 0x00050000 | errno.EPERM, 0x00050000 | errno.ENOSYS


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_filter_forbids_what_it_names_and_lets_the_rest_through(machine):
    named, special = calls._FORBIDDEN[machine], calls._BY_FIRST_ARGUMENT[machine]
    plain = set(range(451)) - set(named.values()) - set(special.values()) - {435}
    assert {run_filter(machine, number) for number in named.values()} == {EPERM}
    assert {run_filter(machine, number) for number in plain} == {ALLOW}
    assert {run_filter(machine, number) for number in (435, 451, 500, 0x40000000, 0x40000000 + 59)} == {ENOSYS}
    assert run_filter(machine, 1, architecture=0x40000003) == 0x80000000  # 32-bit x86: other numbers


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_filter_looks_at_first_arguments(machine):
    special = calls._BY_FIRST_ARGUMENT[machine]
    assert run_filter(machine, special["clone"], 0x003D0F00) == ALLOW  # a thread
    assert run_filter(machine, special["clone"], 0x01200000 | signal.SIGCHLD) == ALLOW  # a fork
    for bit in range(8, 32):
        if 1 << bit & kernel.NAMESPACES:
            assert run_filter(machine, special["clone"], 1 << bit | signal.SIGCHLD) == EPERM
    families = {family for family in range(60) if run_filter(machine, special["socket"], family) == ALLOW}
    assert families == {1}  # AF_UNIX
    assert run_filter(machine, special["prlimit64"], 0) == ALLOW
    assert run_filter(machine, special["prlimit64"], 1) == EPERM


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_numbers_of_system_calls_are_those_of_the_kernel_headers(machine):
    header = Path("/usr/include", HEADERS[machine])
    if not header.exists():
        pytest.skip(f"no {header} here")
    numbers = {name: int(number) for name, number in re.findall(r"__NR(?:3264)?_(\w+)\s+(\d+)", header.read_text())}
    ours = calls._FORBIDDEN[machine] | calls._BY_FIRST_ARGUMENT[machine]
    assert {name: numbers.get(name) for name in ours} == ours


@pytest.mark.parametrize("limits, source, verdict, detail", [
    (Limits(seconds=0.3), SLEEP, "timeout", "more than 0.3 s"),
    (Limits(cpu_seconds=1), "def f():\n    while True: pass", "timeout", "more than 1 s of CPU time"),
    (Limits(memory_bytes=64 << 20), "def f():\n    return len(bytearray(100 << 20))", "memory", "MemoryError.*"),
    (Limits(output_bytes=100), "def f(): print('x' * 200)", "output", "more than 100 bytes printed"),
    (Limits(file_bytes=100), "def f(): open('f', 'w', 1).write('x' * 200 + '\\n')", "error", "OSError: .*too large.*"),
    (Limits(open_files=8), "def f(): return [open('/dev/null') for _ in range(9)]", "error", "OSError: .*open files.*"),
    (Limits(processes=1), "import os\ndef f(): os.fork()", "error", "BlockingIOError.*"),
    (Limits(processes=2), "import os\ndef f(): os.fork() or os._exit(0)", "passed", ""),
])  # fmt: skip
def test_limits_are_those_that_were_asked_for(limits, source, verdict, detail):
    outcome = run_program(source, "f()", limits)
    assert outcome.verdict == verdict
    assert re.fullmatch(detail, outcome.detail)


def test_many_programs_keep_their_order():
    programs = [(f"def f(): return {n}", f"assert f() == {n if n % 3 else -1}") for n in range(7)]
    verdicts = [outcome.verdict for outcome in run_many(programs, at_a_time=3)]
    assert verdicts == ["passed" if n % 3 else "failed" for n in range(7)]
    assert run_many([]) == []


def test_an_outcome_is_a_record(worker, tmp_path):
    outcome = worker.run("print('x')", "")
    outcome.write(tmp_path / "outcome.json")
    assert Outcome.read(tmp_path / "outcome.json") == outcome


def test_success_without_the_token_counts_as_forged(worker, monkeypatch):
    receive = Worker._receive

    def altered(self, seconds):
        message = receive(self, seconds)
        return message | {"token": "0" * 32} if "verdict" in message else message

    monkeypatch.setattr(Worker, "_receive", altered)
    assert worker.run("", "").verdict == "forged"


@pytest.mark.parametrize("victim, seconds", [("judge", 17.25), ("worker", 17.375)])
def test_a_judge_or_worker_that_is_killed_is_no_success_and_takes_its_program_with_it(victim, seconds, monkeypatch):
    mark, outcomes, sent, send = f'"seconds": {seconds}', [], threading.Event(), Worker._send
    monkeypatch.setattr(Worker, "_send", lambda self, job: (send(self, job), sent.set()))
    with Worker(Limits(seconds=seconds)) as worker:
        thread = threading.Thread(target=lambda: outcomes.append(worker.run(SLEEP, "f()")))
        thread.start()
        assert sent.wait(60)
        assert wait_until(lambda: len(processes(mark)) == 4)
        pid = worker._process.pid
        os.kill(children(pid)[0] if victim == "judge" else pid, signal.SIGKILL)
        thread.join(timeout=10)
        assert [outcome.verdict for outcome in outcomes] == ["killed"]
        assert outcomes[0].detail == "its judge ended without an outcome"
        assert wait_until(lambda: not processes(mark), seconds=5)
        assert worker.run("", "").verdict == "passed"


@pytest.mark.parametrize("which", [signal.SIGKILL, signal.SIGTERM])
def test_nothing_outlives_a_harness_that_is_killed(which):
    script = f"from bitdistiller.sandbox import *; run_program({SLEEP!r}, 'f()', Limits(seconds=18.5))"
    harness = subprocess.Popen([sys.executable, "-c", script], env=os.environ | {"PYTHONPATH": os.getcwd()})
    mark = '"seconds": 18.5'
    try:
        assert wait_until(lambda: len(processes(mark)) == 4)
    finally:
        harness.send_signal(which)
        harness.wait()
    assert wait_until(lambda: not processes(mark), seconds=5)


FORBIDDING = """
import ctypes, os
user, group = os.geteuid(), os.getegid()
assert ctypes.CDLL(None).unshare(0x10000000) == 0  # before imports start threads, which would forbid it
open("/proc/self/setgroups", "w").write("deny")
open("/proc/self/uid_map", "w").write(f"1000 {user} 1")
open("/proc/self/gid_map", "w").write(f"1000 {group} 1")
open("/proc/sys/user/max_user_namespaces", "w").write("0")
from bitdistiller.errors import UserError
from bitdistiller.sandbox import run_program
try:
    run_program("", "")
except UserError as error:
    print(error)
"""


def test_a_machine_that_forbids_user_namespaces_is_refused():
    """Such a machine is a user namespace in which no further ones may be made."""
    environment = os.environ | {"PYTHONPATH": os.getcwd()}
    done = subprocess.run([sys.executable, "-c", FORBIDDING], env=environment, capture_output=True, text=True)
    assert done.stderr == ""
    assert re.fullmatch(r"this machine does not let a program be isolated \(unshare: .*\), so nothing was run; .* "
                        r"--run-model-code-without-isolation\n", done.stdout)  # fmt: skip


def test_other_systems_are_refused(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(UserError, match="Linux only"):
        run_program("", "")


def test_without_isolation_is_what_it_says():
    """Limits and separate processes remain; the rest is the user's own, and a daemon left behind is ended."""
    source = (
        "import os, socket, time\n"
        "def f():\n    if os.fork() == 0:\n        os.setsid()\n        time.sleep(1000)\n"
        "    return [os.getuid(), socket.gethostname(), os.path.exists('/proc')]"
    )
    limits = Limits(seconds=19.75)
    tests = f"assert f() == {[os.getuid(), os.uname().nodename, True]!r}"
    with Worker(limits, without_isolation=True) as worker:
        assert worker.run(source, tests).detail == ""
        assert worker.run("", "assert 1 == 2").verdict == "failed"
    assert wait_until(lambda: not processes('"seconds": 19.75'), seconds=5)
    assert run_program(SLEEP, "f()", Limits(seconds=0.3), without_isolation=True).verdict == "timeout"


def test_the_command_prints_verdict_and_output(tmp_path):
    program, tests = tmp_path / "program.py", tmp_path / "tests.py"
    program.write_text("print('hello')\ndef f(): return 1\n")
    tests.write_text("assert f() == 2\n")
    alone = CliRunner().invoke(app, ["sandbox", str(program)])
    assert alone.exit_code == 0
    assert re.fullmatch(r"hello\npassed \(.* s, \d+ MiB\)\n", alone.output)
    tested = CliRunner().invoke(app, ["sandbox", str(program), "--tests", str(tests)])
    assert tested.exit_code == 1
    assert "failed: assertion failed, test line 1: assert f() == 2" in tested.output


def test_the_command_says_what_isolates():
    shown = CliRunner().invoke(app, ["sandbox", "--check"])
    assert shown.exit_code == 0
    assert "user, mount, network, PID, IPC" in shown.output


@pytest.mark.parametrize("arguments", [
    [], ["x.py", "--check"], ["--attacks", "--run-model-code-without-isolation"],
    ["--check", "--attacks"],
])  # fmt: skip
def test_the_command_takes_one_thing_at_a_time(arguments):
    error = CliRunner().invoke(app, ["sandbox", *arguments]).exception
    assert isinstance(error, UserError)
    assert "either FILE or --check or --attacks" in str(error)


def test_a_file_that_cannot_be_read_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match=r"missing\.py cannot be read"):
        CliRunner().invoke(app, ["sandbox", str(tmp_path / "missing.py")], catch_exceptions=False)
