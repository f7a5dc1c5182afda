"""Real file systems and rights for tests: small, read-only, with the power cut off, without root. What cannot be mounted is skipped."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest


@contextmanager
def tmpfs(folder: str, size: int, *options: str) -> Iterator[str]:
    """A file system in memory of `size` bytes on `folder`, which is made; further mount options as they come."""
    os.makedirs(folder, exist_ok=True)
    _mount("-t", "tmpfs", "-o", ",".join([f"size={size}", *options]), "tmpfs", folder)
    try:
        yield folder
    finally:
        _unmount(folder)


def remount(folder: str, option: str) -> None:
    """Change a mount: "ro" or "rw"."""
    subprocess.run(["mount", "-o", f"remount,{option}", folder], check=True)


@contextmanager
def ext4(image: str, folder: str, size: int = 24 << 20) -> Iterator[str]:
    """An ext4 file system in the file `image`, mounted on `folder`; both are made. Times of writing back are those of a real disk."""
    with open(image, "xb") as file:
        file.truncate(size)
    subprocess.run(["mkfs.ext4", "-q", "-F", image], check=True)
    with _image_mounted(image, folder):
        yield folder


@contextmanager
def after_power_cut(image: str, folder: str) -> Iterator[str]:
    """What a power cut at this moment leaves of a mounted `ext4` image: a copy of what has reached the disk, mounted on `folder`."""
    copy = folder + ".img"
    shutil.copyfile(image, copy)
    with _image_mounted(copy, folder):
        yield folder


@contextmanager
def _image_mounted(image: str, folder: str) -> Iterator[None]:
    os.makedirs(folder, exist_ok=True)
    _mount("-o", "loop", image, folder)
    try:
        yield
    finally:
        _unmount(folder)


def _mount(*arguments: str) -> None:
    done = subprocess.run(["mount", *arguments], check=False, capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip(f"cannot mount here: {done.stderr.strip()}")


def _unmount(folder: str) -> None:
    subprocess.run(["umount", folder], check=True)


@contextmanager
def unprivileged() -> Iterator[None]:
    """The body without root's rights, in this process; as another user it changes nothing."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)
