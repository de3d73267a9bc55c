"""A receipt in a real browser: shown, copied, taken home, checked, and a false one found out."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from playwright.sync_api import expect

from moeviz import receipt
from tests.browsing import run_to, until

pytestmark = pytest.mark.browser


def open_receipts(page):
    page.locator(".st-key-receipt button:visible").click()
    expect(page.get_by_role("tab", name="This run")).to_be_visible()


def taken(page):
    with page.expect_download() as download:
        page.get_by_role("button", name="Download receipt").click()
    return download.value.suggested_filename, Path(download.value.path()).read_text(encoding="utf-8")


def check(page, text):
    page.get_by_role("tab", name="Check a receipt").click()
    area = page.get_by_label("Receipt", exact=True)
    area.fill(text)
    area.press("Control+Enter")
    page.get_by_role("button", name="Train it again here").click()


def test_a_receipt_is_shown_taken_home_confirmed_and_a_doctored_one_is_told_apart(new_page):
    page = new_page("?seed=3&balancing=loss_free")
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    run_to(page, 20)
    open_receipts(page)
    name, text = taken(page)
    issued = receipt.from_json(text)
    assert name == "moeviz-loss_free-seed3-step20.receipt.json"
    assert (issued.seed, issued.steps, issued.schedule) == (3, 20, ())
    hashes = page.locator("[class*='st-key-receipt_copy'] code")
    assert hashes.nth(0).inner_text() == page.url.split("?")[0] + issued.link
    assert [hashes.nth(place).inner_text() for place in (1, 2)] == [issued.first, issued.last]
    check(page, text)
    expect(page.get_by_text("Same first and last snapshot")).to_be_visible()
    page.get_by_role("button", name="Got it").click()
    expect(page.get_by_text("Same first and last snapshot")).to_have_count(0)
    open_receipts(page)
    told = json.loads(text)
    told["last"] = told["last"][::-1]
    check(page, json.dumps(told))
    expect(page.get_by_text(re.compile("First snapshot .*: the same. Last snapshot .*: another."))).to_be_visible()
    expect(page.get_by_text("changed after it was written")).to_be_visible()
    until(page, "m.step === 20")

    open_receipts(page)
    a_check_shows_how_far_it_is_and_can_be_cancelled(page, text)
    page.set_viewport_size({"width": 390, "height": 844})
    open_receipts(page)
    a_copied_hash_is_whole_also_where_only_its_beginning_fits(page)


def a_check_shows_how_far_it_is_and_can_be_cancelled(page, text):
    check(page, json.dumps(json.loads(text) | {"steps": 1_000_000}))
    expect(page.get_by_text(re.compile(r"step [1-9][\d,]* of 1,000,000"))).to_be_visible()
    page.get_by_role("button", name="Cancel").click()
    expect(page.get_by_text("of 1,000,000")).to_have_count(0)
    expect(page.get_by_role("button", name="Cancel")).to_have_count(0)


def a_copied_hash_is_whole_also_where_only_its_beginning_fits(page):
    box = page.locator(".st-key-receipt_copy_last")
    code = box.locator("code")
    assert code.evaluate("code => code.scrollWidth > code.clientWidth"), "it does not fit"
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    box.hover()
    box.get_by_role("button").click()
    assert page.evaluate("navigator.clipboard.readText()").strip() == code.inner_text()
    assert len(code.inner_text()) == 64
