"""Where is a Chromium for the browser tests? Finds one, else installs one; `python -m tests.install_chromium`.

In this order: one that is installed, Playwright's own download, Debian's package when root. Where none works the
browser tests are skipped with the reason; with CI=true they fail.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


def find() -> str | None:
    """The path of an installed Chromium, or None."""
    for name in NAMES:
        if path := shutil.which(name):
            return path
    with sync_playwright() as playwright:
        own = playwright.chromium.executable_path
    return own if Path(own).exists() else None


def install() -> str | None:
    """Install one by the first way that works; returns its path, or None."""
    ways = [[sys.executable, "-m", "playwright", "install", "--with-deps", "chromium"]]
    if hasattr(os, "geteuid") and os.geteuid() == 0 and shutil.which("apt-get"):
        ways = [[sys.executable, "-m", "playwright", "install", "chromium"]]
        ways += [["apt-get", "update", "-qq"], ["apt-get", "install", "-y", "-qq", "chromium"]]
    for way in ways:
        print("Installing a Chromium for the browser tests:", " ".join(way), flush=True)
        done = subprocess.run(way, check=False, stdin=subprocess.DEVNULL)
        if done.returncode == 0 and (path := find()):
            return path
    return None


if __name__ == "__main__":
    path = find() or install()
    print(f"Browser tests use {path}." if path else "No Chromium: the browser tests will be skipped.")
