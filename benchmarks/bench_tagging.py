"""Pictures tagged a second by a small ONNX model, against decoding and preparing alone, and the memory it takes."""

import sys
import tempfile
import threading
import time
from collections import deque
from pathlib import Path

import cv2
import numpy as np
import psutil

from engine.captioning.base import CaptionerOptions
from engine.captioning.captioners import CAPTIONERS
from engine.captioning.pictures import load_prepared
from engine.captioning.run import Work, caption_pictures
from engine.captioning.texts import FolderTexts
from engine.hardware import available_cores
from tests.engine.captioning.models_support import wd14_v14

COUNT = int(sys.argv[1]) if len(sys.argv) > 1 and sys.argv[1].isdecimal() else 1000
ROUNDS = 3


def write_pictures(folder: Path) -> None:
    """Write photographs' sizes with smooth content, as JPEG."""
    rng = np.random.default_rng(0)
    for number in range(COUNT):
        coarse = rng.integers(0, 255, (24, 32, 3), np.uint8)
        picture = cv2.resize(coarse, (1024, 768) if number % 2 else (768, 1024), interpolation=cv2.INTER_CUBIC)
        cv2.imwrite(str(folder / f"{number:05}.jpg"), picture)


class Peak(threading.Thread):
    """Watches the memory of this process."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.start_bytes = self.peak_bytes = psutil.Process().memory_info().rss
        self.is_over = False
        self.start()

    def run(self) -> None:
        while not self.is_over:
            self.peak_bytes = max(self.peak_bytes, psutil.Process().memory_info().rss)
            time.sleep(0.01)


def main() -> None:
    """Print both speeds in turn, so that a change of load hits both."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "pictures"
        folder.mkdir()
        write_pictures(folder)
        pictures, workers = FolderTexts(folder, ".txt"), available_cores()
        tagger = CAPTIONERS["wd14"](CaptionerOptions(model=str(wd14_v14(every=8))))
        work = Work(pictures=pictures, texts=pictures, captioner=tagger, batch_size=8, workers=workers)
        keys = pictures.keys()
        pairs = [(key, pictures.picture(key)) for key in keys]
        ratios = []
        for _round in range(ROUNDS):
            start = time.perf_counter()
            deque(load_prepared(pairs, tagger.prepare, workers=workers, ahead=workers + 8), maxlen=0)
            decoding = COUNT / (time.perf_counter() - start)
            peak = Peak()
            summary = caption_pictures(work)
            peak.is_over = True
            tagging = summary.described / summary.seconds
            ratios.append(tagging / decoding)
            grown = (peak.peak_bytes - peak.start_bytes) / 2**20
            print(
                f"decoding {decoding:7.1f}/s  tagging {tagging:7.1f}/s  ratio {ratios[-1]:.2f}  grown {grown:.0f} MiB"
            )
        print(f"median ratio {sorted(ratios)[ROUNDS // 2]:.2f}, load {psutil.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
