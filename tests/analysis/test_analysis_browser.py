"""The report in a real browser."""

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from realistic_study import ARMS, INJECTED, write_online_study, write_realistic_study

from analysis import load_runs, write_report

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None or DRIVER is None, reason="no Chromium with chromedriver on this machine"),
]


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_realistic_study(tmp_path_factory.mktemp("study") / "quickstart")


@pytest.fixture(scope="module")
def page(study: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator:
    webdriver = pytest.importorskip("selenium.webdriver")
    folder = tmp_path_factory.mktemp("browser")
    index = write_report(study)
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for argument in (
        "headless",
        "no-sandbox",
        "disable-gpu",
        "disable-dev-shm-usage",
        "disable-quic",
        "no-first-run",
        "disable-background-networking",
        "disable-component-update",
        "disable-sync",
        "window-size=1280,900",
        f"user-data-dir={folder / 'profile'}",
    ):
        options.add_argument(f"--{argument}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(executable_path=DRIVER))
    try:
        driver.get(index.as_uri())
        yield driver
    finally:
        driver.quit()


def texts(page, selector: str) -> list[str]:
    return [element.text for element in page.find_elements("css selector", selector)]


def complaints(page) -> list[dict]:
    return [line for line in page.get_log("browser") if line["level"] != "INFO"]


def test_the_table_the_pictures_and_the_injected_text_as_a_browser_shows_them(page):
    sent = [json.loads(line["message"])["message"] for line in page.get_log("performance")]
    requests = [
        message["params"]["request"]["url"]
        for message in sent
        if message["method"] == "Network.requestWillBeSent"
        and message["params"]["documentURL"] == page.current_url  # not those of the browser's own first tab
    ]
    outside = [url for url in requests if not url.startswith("data:")]
    assert outside == [page.current_url], "the page itself and nothing beside it"
    assert complaints(page) == []

    rows = [row.text for row in page.find_elements("css selector", "#efficiency-table tbody tr")]
    assert [row.split()[0] for row in rows] == ["grpo-group", "grpovi-group", "grpo-none", "grpovi-none"]
    assert "3 of 3" in rows[0] and "2 of 2" in rows[3] and "1 excluded" in rows[3]
    assert "grpovi-group is slower than grpo-group." in texts(page, "#verdicts .answer")

    pictures = page.find_elements("css selector", ".pictures svg")
    assert len(pictures) == 8  # beside the chart that the reader works with
    for picture in pictures:
        assert picture.size["width"] > 300 and picture.size["height"] > 200

    assert texts(page, "#warnings td.text") == [INJECTED]
    assert page.title == "quickstart: efficiency report"


def test_the_first_screen_holds_question_answer_picture_and_cost_and_folds_the_numbers_away(page):
    def bottom(selector: str) -> float:
        rectangles = "[...document.querySelectorAll(arguments[0])].map(e => e.getBoundingClientRect().bottom)"
        return max(page.execute_script(f"return {rectangles}", selector))

    page.execute_script("window.scrollTo(0, 0)")
    height = page.execute_script("return window.innerHeight")
    assert texts(page, "#verdicts h2") == [
        "Is grpovi-group faster than grpo-group?",
        "Is grpovi-none faster than grpo-none?",
    ]
    for selector in ("#verdicts h2", "#verdicts .answer", "#verdicts svg", "#cost"):
        assert bottom(selector) < height, selector
    sentences = page.find_elements("css selector", ".verdict li")
    assert not any(sentence.is_displayed() for sentence in sentences)
    page.find_element("css selector", ".verdict summary").click()
    assert [sentence.is_displayed() for sentence in sentences].count(True) == len(
        page.find_element("css selector", ".verdict").find_elements("css selector", "li")
    )
    page.find_element("css selector", ".verdict summary").click()


def test_nothing_is_wider_than_a_laptops_window(page):
    assert page.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")
    wide = page.execute_script(
        "return [...document.querySelectorAll('#efficiency .scroll')].map(box => box.scrollWidth - box.clientWidth)"
    )
    assert wide == [0]


def test_dark_mode_turns_paper_and_ink_round(page):
    def colours() -> tuple[int, int]:
        script = "const s = getComputedStyle(document.body); return [s.backgroundColor, s.color]"
        paper, ink = ([int(part) for part in text.strip("rgb()").split(",")] for text in page.execute_script(script))
        return sum(paper), sum(ink)

    for scheme in ("light", "dark"):
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        paper, ink = colours()
        assert (paper > ink) == (scheme == "light")
        label = page.find_element("css selector", ".pictures svg text")
        assert sum(int(part) for part in label.value_of_css_property("fill").strip("rgb()").split(",")) == ink


def test_the_section_of_online_reward_models_fits_a_laptops_window(page, tmp_path):
    before = page.current_url
    page.get(write_report(write_online_study(tmp_path / "online")).as_uri())
    try:
        assert page.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")
        wide = "const box = document.querySelector('#online .scroll'); return box.scrollWidth - box.clientWidth"
        assert page.execute_script(wide) == 0
        rows = texts(page, "#online-table tbody tr")
        assert ["320" in row for row in rows] == [not row.split()[0].endswith("frozen") for row in rows]
        pictures = page.find_elements("css selector", "#online .pictures svg")
        assert len(pictures) == 6
        for picture in pictures:
            assert picture.size["width"] > 300 and picture.size["height"] > 200
        assert complaints(page) == []
    finally:
        page.get(before)


def shown(page, layer: int) -> dict[str, list]:
    """What the chart shows: layer 0 is the seeds, 1 the means."""
    data = f"Bokeh.documents.at(-1).roots()[0].renderers[{layer}].data_source.data"
    lists = ("seed", "arm"), ("ys", "xs")
    texts = {name: page.execute_script(f"return [...{data}.{name}]") for name in lists[0]}
    return texts | {name: page.execute_script(f"return [...{data}.{name}].map(a => [...a])") for name in lists[1]}


def pick(page, metric: str) -> None:
    page.find_element("xpath", f"//select[@id='chart-metric']//option[.='{metric}']").click()


@pytest.mark.parametrize(("width", "scheme"), [(1200, "light"), (390, "dark")])
def test_the_reader_picks_a_metric_and_arms_and_sees_what_was_logged(page, study, width, scheme):
    page.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    )
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    assert page.execute_script("return document.documentElement.scrollWidth") <= width
    assert page.find_element("id", "chart-plot").size["height"] >= 400

    pick(page, "eval/kl")
    runs = load_runs(study)
    logged = runs[(runs["metric"] == "eval/kl") & (runs["arm"] == "grpo-none")]
    means = shown(page, 1)
    place = means["arm"].index("grpo-none")
    assert means["seed"] == ["mean"] * 4 and len(shown(page, 0)["seed"]) == 11
    assert means["ys"][place] == pytest.approx(logged.groupby("step")["value"].mean().tolist(), rel=1e-6)
    assert means["xs"][place] == sorted(set(logged["step"]))

    page.find_element("id", "chart-seeds").click()
    page.find_element("css selector", "input[name=arm]").click()
    assert shown(page, 1)["arm"] == ["grpo-none", "grpovi-group", "grpovi-none"] and shown(page, 0)["seed"] == []
    page.find_element("id", "chart-seeds").click()
    page.find_element("css selector", "input[name=arm]").click()
    ink = page.execute_script("return Bokeh.documents.at(-1).roots()[0].axes[0].major_label_text_color")
    assert ink == {"light": "#1f2328", "dark": "#e6edf3"}[scheme]
    assert complaints(page) == []
    page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_a_table_sorts_by_a_click_on_a_heading_and_says_so_to_screen_readers(page):
    def column() -> list[str]:
        return [text.split("\n")[0] for text in texts(page, "#efficiency-table tbody td:nth-child(4)")]

    heading = page.find_element("css selector", "#efficiency-table th:nth-child(4)")
    steps = sorted(map(float, column()))
    for direction, expected in (("ascending", steps), ("descending", steps[::-1])):
        heading.find_element("css selector", "button").click()
        assert heading.get_attribute("aria-sort") == direction
        assert list(map(float, column())) == expected
    arm = page.find_element("css selector", "#efficiency-table th:first-child")
    arm.find_element("css selector", "button").click()
    assert [row.split()[0] for row in texts(page, "#efficiency-table tbody tr")] == sorted(ARMS)
    assert heading.get_attribute("aria-sort") is None and arm.get_attribute("aria-sort") == "ascending"


def test_a_section_folds_and_is_whole_on_paper(page):
    section = page.find_element("css selector", "#paired")
    picture = section.find_element("css selector", "svg")
    section.find_element("css selector", "summary").click()
    assert not picture.is_displayed()
    visible = "return arguments[0].checkVisibility({contentVisibilityAuto: true})"
    # The page hears of a change of the medium when the browser comes to it.
    for media, height in (("print", True), ("", False)):
        page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media})
        deadline = time.monotonic() + 10
        while page.execute_script(visible, picture) != height and time.monotonic() < deadline:
            time.sleep(0.05)
        assert page.execute_script(visible, picture) == height
        assert page.find_element("id", "chart").is_displayed() != (media == "print")
    section.find_element("css selector", "summary").click()


def test_without_javascript_everything_but_the_chart_is_there(page):
    before = page.current_url
    page.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    page.get(before)
    try:
        assert not page.find_element("id", "chart").is_displayed()
        assert "With JavaScript, a chart of every logged metric stands here." in texts(page, "noscript p")
        assert len(page.find_elements("css selector", ".pictures svg")) == 8
        assert len(page.find_elements("css selector", "#efficiency-table tbody tr")) == 4
        assert page.find_elements("css selector", "th button") == []
        page.find_element("css selector", "#paired summary").click()
        assert not page.find_element("css selector", "#paired svg").is_displayed()
        assert complaints(page) == []
    finally:
        page.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
        page.get(before)
