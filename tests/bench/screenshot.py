"""Take a picture of a report in headless Chromium: the README's, or one to look at.

    python tests/bench/screenshot.py demo_report/report.html report.png --width 1200 --height 900

Needs Chromium with its driver (Debian: chromium, chromium-driver) and Selenium.
"""

import argparse
import base64
import shutil
import tempfile
from pathlib import Path

from selenium import webdriver
from selenium.webdriver.chrome.service import Service

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-quic", "--no-first-run",
)  # fmt: skip


def picture(page, width, height, scale, scheme):
    """PNG bytes of the upper `height` pixels of a page, of all of it where that is 0."""
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or shutil.which("chromium-browser") or ""
    with tempfile.TemporaryDirectory() as profile:
        for flag in (*FLAGS, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        driver = webdriver.Chrome(options, Service(shutil.which("chromedriver")))
        try:
            features = [{"name": "prefers-color-scheme", "value": scheme}]
            driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
            view = {
                "width": width,
                "height": 900,
                "deviceScaleFactor": scale,
                "mobile": width < 600,
            }
            driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", view)
            driver.get(page.resolve().as_uri())
            whole = driver.execute_script("return document.documentElement.scrollHeight")
            clip = {"x": 0, "y": 0, "width": width, "height": height or whole, "scale": 1}
            shot = {"captureBeyondViewport": True, "clip": clip}
            return base64.b64decode(driver.execute_cdp_cmd("Page.captureScreenshot", shot)["data"])
        finally:
            driver.quit()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("page", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--width", type=int, default=1400)
    parser.add_argument("--height", type=int, default=0, help="pixels from the top (0: all)")
    parser.add_argument("--scale", type=float, default=1.0, help="device pixels a pixel")
    parser.add_argument("--dark", action="store_true")
    given = parser.parse_args()
    scheme = "dark" if given.dark else "light"
    given.output.write_bytes(picture(given.page, given.width, given.height, given.scale, scheme))
    print(f"{given.output}: {given.output.stat().st_size} bytes")


if __name__ == "__main__":
    main()
