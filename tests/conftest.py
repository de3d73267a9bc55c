"""The same random examples on every machine and every day, without a clock: a red test stays red until it is fixed."""

from __future__ import annotations

import sys
from functools import cache

import pytest
from hypothesis import HealthCheck, Phase, settings
from xdist.scheduler import LoadFileScheduling

pytest_plugins = ("tests.browsing",)  # its fixtures
settings.register_profile(
    "moeviz", deadline=None, derandomize=True, max_examples=40, suppress_health_check=[HealthCheck.too_slow]
)
# `make mutants`: the same examples, but a mutant is dead as soon as one example fails; nobody reads the smallest one.
settings.register_profile("mutants", settings.get_profile("moeviz"), phases=(Phase.explicit, Phase.generate))
# The same again in another process, on other kernels.
settings.register_profile("brief", settings.get_profile("moeviz"), max_examples=8)
settings.load_profile("moeviz")


class OneBrowser(LoadFileScheduling):
    """A file never in two processes, and all files with a browser in one: they share a server and a Chromium, and two
    pages on two cores would slow each other."""

    def _split_scope(self, nodeid):
        file = super()._split_scope(nodeid)
        return "browser" if file.rpartition("/")[2].startswith(BROWSER_FILES) else file


BROWSER_FILES = ("test_browser", "test_outbound")
# Begun in this order before all others, so that all processes end together; each is given two at first.
FIRST = ("test_browser", "test_outbound", "test_stacking", "test_docs", "test_fuzz", "test_survival", "test_twins")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    return OneBrowser(config, log)


def pytest_collection_modifyitems(items):
    """Long files first."""
    items.sort(
        key=lambda item: next((n for n, name in enumerate(FIRST) if item.path.stem.startswith(name)), len(FIRST))
    )


def pytest_runtest_setup(item):
    """What this machine cannot promise is not expected of it, and said."""
    if item.get_closest_marker("exact"):
        from moeviz.stacking import stacks_exactly

        if not stacks_exactly("cpu"):
            pytest.skip("this machine rounds a run otherwise when others are beside it: equal to rounding only")


@pytest.fixture(scope="session", autouse=True)
def _look_for_components_once():
    """Each page that is run as a script searches all installed packages for components, which takes longer than the
    page. None comes or goes meanwhile."""
    if "streamlit.testing.v1" not in sys.modules:
        yield
        return
    from streamlit.components.v2 import manifest_scanner

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(manifest_scanner, "scan_component_manifests", cache(manifest_scanner.scan_component_manifests))
        yield


def _host_of_pages():
    """The host of pages that are run as scripts, where there is one."""
    made = getattr(sys.modules.get("moeviz.ui.hosting"), "host", None)  # a test may have put another in its place
    return made() if hasattr(made, "cache_info") and made.cache_info().currsize else None


@pytest.fixture(scope="session", autouse=True)
def _end_the_workers():
    """All modules share its processes, which would outlive them."""
    yield
    if host := _host_of_pages():
        host.shutdown()
        sys.modules["moeviz.ui.hosting"].host.cache_clear()


@pytest.fixture(autouse=True)
def _close_the_runs(_end_the_workers):
    """The next test has the processes to itself: what one leaves would train on, and take places."""
    yield
    if host := _host_of_pages():
        for run in list(host._runs.values()):
            run.close()


@pytest.fixture(scope="session")
def alone():
    """The address of a page that shows nothing but charts."""
    from tests.charts_alone import serving_pages  # here, since it brings torch, which most tests do without

    with serving_pages() as address:
        yield address


@pytest.fixture(scope="module")
def tab(browser, alone, request):
    """A watched page for all tests of a module that look at charts alone."""
    from tests.browsing import watched_pages
    from tests.charts_alone import Tab

    with watched_pages(browser, request.module.__name__) as open_page:
        tab = Tab(open_page(alone), alone)
        tab.watch = open_page
        yield tab


@pytest.fixture
def show(tab, request):
    """Shows the charts of a run alone, or of its twins."""
    from tests.browsing import PAGES

    request.node.stash[PAGES] = tab.watch
    return tab.show
