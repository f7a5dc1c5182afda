"""Hooks: who may have written them, what they are told, what their exit status means, and that the examples work."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from mailbackup import hooks
from mailbackup.errors import SafetyRefusal
from mailbackup.model.finding import Finding, FindingKind
from tests.nightly.conftest import Host

SHIPPED = Path(__file__).parents[2] / "hooks"
ROOT_ONLY = pytest.mark.root


def about(phase: hooks.Phase = "pre-snapshot", **members: object) -> hooks.About:
    return hooks.About(phase=phase, job="nightly", host="mx1", vault="1" * 32, **members)


def run(host: Host, phase: hooks.Phase = "pre-snapshot", limit: float = 20, **members: object) -> hooks.Ran:
    return hooks.run_phase(f"{host.root}/hooks", about(phase, **members), limit=limit)


def test_nothing_there(host: Host):
    assert run(host) == hooks.Ran()


def test_order_and_what_is_passed_over(host: Host):
    out = f"{host.root}/out"
    for name in ("20-b", "10-a", "30.sh", ".hidden", "40~", "50.bak", "60.dpkg-old", "70.dpkg-dist", "80.swp", "90.orig", "95.rpmsave"):
        host.hook("pre-snapshot", name, f"echo {name} >> {out}")
    host.hook("pre-snapshot", "00-off", f"echo off >> {out}", mode=0o644)
    (Path(host.root) / "hooks/pre-snapshot.d/15-directory").mkdir()
    assert run(host) == hooks.Ran(("10-a", "20-b", "30.sh"))
    assert Path(out).read_text().split() == ["10-a", "20-b", "30.sh"]


def test_what_a_hook_is_told(host: Host, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MAILBACKUP_PASSPHRASE_FILE", "/secret")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    out = f"{host.root}/out"
    host.hook("failed", "tell", f"cat > {out}.json; /usr/bin/env -0 > {out}.env; pwd > {out}.cwd")
    found = Finding(FindingKind.UNREADABLE, "/x", "no")
    assert run(host, "failed", seq=7, outcome="incomplete", findings=(found,) * 300).findings == ()
    told = json.loads(Path(f"{out}.json").read_text())
    assert told.keys() == {"phase", "job", "host", "vault", "seq", "outcome", "findings"}
    assert (told["phase"], told["job"], told["seq"], told["outcome"], len(told["findings"])) == ("failed", "nightly", 7, "incomplete", 100)
    environment = dict(row.split("=", 1) for row in Path(f"{out}.env").read_text().split("\0") if row)
    assert environment.keys() - {"PWD", "SHLVL", "_", "OLDPWD"} == {
        "PATH", "HOME", "LANG", "MAILBACKUP_PHASE", "MAILBACKUP_JOB", "MAILBACKUP_HOST", "MAILBACKUP_OUTCOME", "MAILBACKUP_SEQ",
    }  # fmt: skip
    assert Path(f"{out}.cwd").read_text() == "/\n"


def test_the_table_of_exit_statuses(host: Host):
    host.hook("pre-snapshot", "1-fails", "echo one; echo two >&2; exit 7")
    host.hook("pre-snapshot", "2-dies", "kill -9 $$")
    host.hook("pre-snapshot", "3-works", "exit 0")
    ran = run(host)
    assert ran.names == ("1-fails", "2-dies", "3-works")
    assert [(finding.kind, finding.detail) for finding in ran.findings] == [
        ("hook-failed", "exit status 7: one / two"),
        ("hook-failed", "killed by signal 9"),
    ]


def test_veto(host: Host):
    host.hook("pre-snapshot", "1-veto", "echo noise; echo the disk is away; exit 99")
    after = host.hook("pre-snapshot", "2-after", f"touch {host.root}/ran")
    with pytest.raises(SafetyRefusal, match="hook 1-veto refused the snapshot: noise / the disk is away") as caught:
        run(host)
    assert caught.value.exit_status == 8
    assert not Path(host.root, "ran").exists()
    assert after.exists()
    for phase in ("post-snapshot", "failed"):
        host.hook(phase, "1-veto", "exit 99")
        assert [finding.detail for finding in run(host, phase).findings] == ["exit status 99"]


def test_the_time_limit_takes_everything_along(host: Host):
    host.hook("pre-snapshot", "slow", f"echo begun; (sleep 60; touch {host.root}/late) & echo $! > {host.root}/pid; wait")
    began = time.monotonic()
    ran = run(host, limit=0.5)
    assert time.monotonic() - began < 10
    assert [finding.detail for finding in ran.findings] == ["stopped after 0.5 s: begun"]
    _gone(int(Path(host.root, "pid").read_text()))


def test_a_hook_that_ignores_sigterm_is_killed(host: Host):
    host.hook("pre-snapshot", "deaf", f"trap '' TERM; echo $$ > {host.root}/pid; while :; do sleep 0.1; done")
    assert [finding.detail for finding in run(host, limit=0.5).findings] == ["stopped after 0.5 s"]
    _gone(int(Path(host.root, "pid").read_text()))


def test_a_child_that_ignores_sigterm_is_killed_also_when_its_parent_heeds_it(host: Host):
    child = f"trap '' TERM; echo $$ > {host.root}/pid; while :; do sleep 0.1; done"
    host.hook("pre-snapshot", "parent", f'sh -c "{child.replace("$", chr(92) + "$")}" & wait')
    assert [finding.detail for finding in run(host, limit=0.5).findings] == ["stopped after 0.5 s"]
    _gone(int(Path(host.root, "pid").read_text()))


def _gone(pid: int) -> None:
    until = time.monotonic() + 5
    while time.monotonic() < until:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return
        except OSError:
            return
        time.sleep(0.05)
    pytest.fail(f"process {pid} still runs")


def test_what_it_leaves_running_does_not_hold_us(host: Host):
    host.hook("pre-snapshot", "daemon", f"sleep 30 & echo $! > {host.root}/pid; echo done")
    began = time.monotonic()
    assert run(host).findings == ()
    assert time.monotonic() - began < 5
    os.kill(int(Path(host.root, "pid").read_text()), 9)


def test_much_output_and_unread_input(host: Host):
    host.hook("pre-snapshot", "loud", "yes 0123456789 | tr -d '\\n' | head -c 5000000; printf 'the \\033[31mend\\377\\n'; exit 1")
    host.hook("pre-snapshot", "odd", "exec 0<&-; exit 0")
    (finding,) = run(host).findings
    assert finding.detail.endswith("the \x1b[31mend�")
    assert len(finding.detail) < 5000


def test_what_cannot_be_executed(host: Host):
    path = host.hook("pre-snapshot", "broken", "")
    path.write_text("#!/no/such/interpreter\n")
    assert [finding.detail for finding in run(host).findings] == ["cannot be run: No such file or directory"]
    (path.parent / "dangling").symlink_to("/no/such/file")
    assert [finding.detail for finding in run(host).findings][1] == "not run: /no: No such file or directory"


# ---------------------------------------------------------------- who could have written it


def refused(host: Host) -> str:
    """The reason; nothing may have run."""
    (finding,) = run(host).findings
    assert finding.kind is FindingKind.HOOK_FAILED
    assert finding.detail.startswith("not run: ")
    assert not Path(host.root, "ran").exists()
    return finding.detail


@pytest.fixture
def hook(host: Host) -> Path:
    return host.hook("pre-snapshot", "h", f"touch {host.root}/ran")


def test_the_control_runs(host: Host, hook: Path):
    assert run(host).findings == ()
    assert Path(host.root, "ran").exists()


@pytest.mark.parametrize("mode", [0o775, 0o757, 0o777])
@pytest.mark.parametrize("level", range(4))
def test_writable_by_others(mode: int, level: int, host: Host, hook: Path):
    """The file, its directory, hooks, and the directory above."""
    path = [hook, *hook.parents][level]
    path.chmod(mode)
    assert f"{path} can be written by others (mode {mode:04o})" in refused(host)


def test_a_sticky_directory_above_is_fine_but_not_for_hooks_themselves(host: Host, hook: Path):
    Path(host.root).chmod(0o1777)
    assert run(host).findings == ()
    os.unlink(f"{host.root}/ran")
    hook.parent.chmod(0o1777)
    assert "can be written by others (mode 1777)" in refused(host)


@ROOT_ONLY
@pytest.mark.parametrize("level", range(4))
def test_owned_by_somebody_else(level: int, host: Host, hook: Path):
    path = [hook, *hook.parents][level]
    os.chown(path, 12345, -1)
    assert f"{path} belongs to user 12345, not to root" in refused(host)
    os.chown(path, 0, -1)


@ROOT_ONLY
def test_somebody_who_is_not_root_may_own_his_hooks():
    with tempfile.TemporaryDirectory() as folder:
        os.chown(folder, 12345, -1)
        path = Path(folder, "h")
        path.touch(0o755)
        for owner, reason in ((12345, None), (0, None), (12346, "belongs to user 12346")):
            os.chown(path, owner, -1)
            os.seteuid(12345)
            found = hooks.refusal(str(path))
            os.seteuid(0)
            assert (found is None) if reason is None else reason in str(found)


@ROOT_ONLY
def test_links_are_followed_with_the_same_eyes(host: Host, tmp_path: Path):
    elsewhere = tmp_path / "elsewhere" / "deep"
    elsewhere.mkdir(parents=True)
    target = elsewhere / "real"
    target.write_text(f"#!/bin/sh\ntouch {host.root}/ran\n")
    target.chmod(0o755)
    folder = host.hook("pre-snapshot", "unused", "").parent
    os.unlink(folder / "unused")
    link = folder / "h"
    link.symlink_to("../../elsewhere/deep/real")
    assert run(host).findings == ()
    os.unlink(f"{host.root}/ran")
    elsewhere.parent.chmod(0o777)
    assert f"{elsewhere.parent} can be written by others" in refused(host)
    elsewhere.parent.chmod(0o755)
    os.chown(target, 12345, -1)
    assert f"{target} belongs to user 12345" in refused(host)
    os.chown(target, 0, -1)
    os.chown(link, 12345, -1, follow_symlinks=False)
    assert f"{link} belongs to user 12345" in refused(host)
    os.unlink(link)
    link.symlink_to(link)
    assert "too many symbolic links" in refused(host)


@ROOT_ONLY
def test_a_linked_directory(host: Host, hook: Path, tmp_path: Path):
    real = tmp_path / "real.d"
    hook.parent.rename(real)
    hook.parent.symlink_to(real)
    assert run(host).findings == ()
    os.unlink(f"{host.root}/ran")
    real.chmod(0o775)
    assert f"{real} can be written by others" in refused(host)


@ROOT_ONLY
def test_an_acl_shows_in_the_mode(host: Host, hook: Path):
    subprocess.run(["setfacl", "-m", "u:12345:rwx", str(hook)], check=True)
    assert "can be written by others" in refused(host)


# ---------------------------------------------------------------- the examples


def install(host: Host, name: str) -> Path:
    """As hooks/README.md says."""
    to = Path(host.root, "hooks", name)
    subprocess.run(["install", "-D", "-m", "755", str(SHIPPED / name), str(to)], check=True)
    return to


def test_refuse_unmounted(host: Host):
    install(host, "pre-snapshot.d/refuse-unmounted")
    (finding,) = run(host).findings
    assert "cannot read" in finding.detail
    listed = Path(host.root, "hooks", "refuse-unmounted.list")
    listed.write_text("# mounts\n\n/proc\n/")
    assert run(host).findings == ()
    listed.write_text(f"/proc\n{host.root}/mail")
    with pytest.raises(SafetyRefusal, match=f"refused the snapshot: {host.root}/mail is not mounted"):
        run(host)


LOG = """
import json, socket, subprocess, sys
sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
sock.bind("/dev/log")
sys.path.insert(0, sys.argv[1])
from mailbackup import hooks
from mailbackup.model.finding import Finding, FindingKind
about = hooks.About(phase="failed", job="nightly", host="mx1", vault="1", outcome="failed", findings=(Finding(FindingKind.LOST, "x", "it's \\"$(id)\\""),) * 99)
ran = hooks.run_phase(sys.argv[2], about, limit=20)
sock.settimeout(5)
print(json.dumps([[finding.detail for finding in ran.findings], sock.recv(65536).decode()]))
"""


@ROOT_ONLY
@pytest.mark.skipif(shutil.which("bwrap") is None, reason="needs bwrap")
def test_tell_syslog(host: Host):
    install(host, "failed.d/tell-syslog")
    repo = str(Path(__file__).parents[2])
    box = ["bwrap", "--bind", "/", "/", "--dev", "/dev", "--proc", "/proc", "--die-with-parent"]
    done = subprocess.run(
        [*box, sys.executable, "-c", LOG, repo, f"{host.root}/hooks"], capture_output=True, text=True, check=True, timeout=60
    )
    details, line = json.loads(done.stdout)
    assert details == []
    assert line.startswith("<19>")  # mail.err
    assert 'mailbackup: job nightly on mx1: failed, look with \'mailbackup job show nightly\': {"phase":"failed"' in line
    assert "$(id)" in line
