"""Several hosts on one machine: network namespaces with an address and an sshd each. Needs root.

A host has its own network, processes, /etc/passwd (root's home is its own), /run, /dev/shm and Ray temp folder, since
`ray stop` kills by name and Ray finds clusters by its temp folder. All else is the machine's: a shared file system.

    with hosts(folder, 4) as made:
        made[0].ssh("hostname")
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

NETWORK = "10.77.0"  # x.254 is the machine itself, x.1, x.2, ... are the hosts
BRIDGE = "pretune0"
PROGRAMS = ("sshd", "ssh", "rsync", "ip", "unshare", "nsenter")


def why_not() -> str | None:
    """Why hosts cannot be made here, or None."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "making hosts needs root on Linux"
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        return f"needs {', '.join(missing)} (Debian: openssh-server openssh-client rsync iproute2 util-linux)"
    tried = subprocess.run(["unshare", "-m", "-p", "-u", "-n", "-f", "--mount-proc", "true"], capture_output=True)
    return "this kernel or container allows no namespaces" if tried.returncode else None


@dataclass(frozen=True)
class Host:
    """A running host."""

    name: str
    address: str
    key: Path  # private, accepted by every host
    process: subprocess.Popen[bytes]

    def ssh(self, command: str, timeout: float = 120) -> str:
        """Run a command in a login shell, as `ray up` does; answers what it printed. Raises where it fails."""
        done = subprocess.run(
            [*self.ssh_words(), f"bash --login -i -c {_quoted(command)}"],
            capture_output=True, text=True, timeout=timeout, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"{self.name}: {command}: exit code {done.returncode}\n{done.stdout}\n{done.stderr}")
        return done.stdout

    def ssh_words(self, *options: str) -> list[str]:
        quiet = ["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR"]
        return ["ssh", "-i", str(self.key), *quiet, *options, f"root@{self.address}"]

    def kill(self) -> None:
        """The host is gone at once, as when its plug is pulled: first the cable, then every process."""
        subprocess.run(["ip", "link", "set", f"v{self.name}", "down"], check=False)
        self.end()

    def end(self) -> None:
        """Its first process dies, and with it, by the kernel, all others of the namespace."""
        if self.process.poll() is not None:
            return  # its number may be another process's by now
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        for child in children.read_text().split() if children.exists() else []:
            os.kill(int(child), signal.SIGKILL)
        self.process.kill()
        self.process.wait()


def _quoted(command: str) -> str:
    return "'" + command.replace("'", "'\\''") + "'"


@contextmanager
def hosts(folder: Path, count: int, path: str) -> Iterator[list[Host]]:
    """`count` hosts until the context is left; `path` is what PATH gets in front."""
    key = folder / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    made: list[Host] = []
    try:
        _run(f"ip link add {BRIDGE} type bridge")
        _run(f"ip addr add {NETWORK}.254/24 dev {BRIDGE}")
        _run(f"ip link set {BRIDGE} up")
        for number in range(1, count + 1):
            made += [_start(folder, number, key, path)]
        for host in made:
            _wait(host)
        yield made
    finally:
        for host in made:
            host.end()
        for number in range(1, count + 1):
            subprocess.run(["ip", "netns", "del", f"pretune{number}"], capture_output=True)
            # A namespace stays until its last closed connection is forgotten; its cable is pulled now.
            subprocess.run(["ip", "link", "del", f"vpretune{number}"], capture_output=True)
        subprocess.run(["ip", "link", "del", BRIDGE], capture_output=True)


def _start(folder: Path, number: int, key: Path, path: str) -> Host:
    name, address = f"pretune{number}", f"{NETWORK}.{number}"
    _run(f"ip netns add {name}")
    _run(f"ip link add v{name} type veth peer name eth0 netns {name}")
    _run(f"ip link set v{name} master {BRIDGE} up")
    _run(f"ip -n {name} addr add {address}/24 dev eth0")
    _run(f"ip -n {name} link set eth0 up")
    _run(f"ip -n {name} link set lo up")
    _run(f"ip -n {name} route add default via {NETWORK}.254")  # Ray finds its address by the default route

    home = folder / name
    (home / ".ssh").mkdir(parents=True)
    shutil.copy(f"{key}.pub", home / ".ssh/authorized_keys")
    (home / ".bashrc").write_text(f"export PATH={path}:$PATH HOME={home} OMP_NUM_THREADS=1\n")
    (home / ".profile").write_text(". ~/.bashrc\n")
    for private in (home, home / ".ssh"):
        private.chmod(0o700)
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(home / "host_key")], check=True)
    lines = Path("/etc/passwd").read_text().splitlines()
    root = f"root:x:0:0:root:{home}:/bin/bash"
    (home / "passwd").write_text("\n".join(root if line.startswith("root:") else line for line in lines) + "\n")
    script = f"""set -e
    hostname {name}
    mkdir -p /tmp/ray
    mount -t tmpfs tmpfs /tmp/ray; mount -t tmpfs tmpfs /dev/shm; mount -t tmpfs tmpfs /run; mkdir /run/sshd
    mount --bind {home}/passwd /etc/passwd
    exec {shutil.which("sshd")} -D -e -f /dev/null -h {home}/host_key -p 22 \\
        -o AuthorizedKeysFile={home}/.ssh/authorized_keys -o StrictModes=no -o PasswordAuthentication=no \\
        -o PermitRootLogin=prohibit-password -o UsePAM=no -o PidFile=none -o MaxSessions=100 -o MaxStartups=100
    """
    inside = ["ip", "netns", "exec", name, "unshare", "-m", "-p", "-u", "-f", "--mount-proc", "bash", "-c", script]
    environment = {"PATH": os.environ["PATH"], "HOME": str(home), "SHELL": "/bin/bash"}
    with (folder / f"{name}.log").open("wb") as log:
        return Host(name, address, key, subprocess.Popen(inside, env=environment, stdout=log, stderr=log))


def _wait(host: Host, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            host.ssh("true")
            return
        except RuntimeError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.3)


def _run(command: str) -> None:
    done = subprocess.run(command.split(), capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{command}: {done.stderr.strip()}")
