"""Pictures to latents: encoded once, keyed by everything that decides the numbers, never stale, never poisoned."""

import os
import shutil
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from engine.errors import EngineError
from engine.fingerprint import fingerprint
from engine.latents import (
    LatentJob,
    encode_latents,
    encode_with_vae,
    missing_latents,
)
from engine.pixels import PixelJob, load_pixels

from .latents_support import Encoder, draw_picture, expected, job_for, jobs_in, open_cache

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture(params=["disk", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path | None:
    return tmp_path / "cache" if request.param == "disk" else None


def test_latents_are_those_of_the_encoder_in_the_order_of_the_jobs(folder: Path | None, tmp_path: Path):
    """Through batches by bucket, threads and files, bit for bit in float32."""
    sizes = [(64, 64), (128, 64), (64, 64), (64, 128), (128, 64), (64, 64), (64, 64)]
    jobs = [job_for(draw_picture(tmp_path / f"{i}.png", i, size), size) for i, size in enumerate(sizes)]
    encoder = Encoder()

    latents = encode_latents(jobs, open_cache(folder), encoder, batch_size=3, workers=3)

    assert sorted([3, 1, 2, 1]) == sorted(encoder.batches)
    for position, job in enumerate(jobs):
        assert torch.equal(expected(job), latents.read([position])[0])
    assert torch.equal(torch.stack([expected(jobs[place]) for place in (5, 0, 6)]), latents.read([5, 0, 6]))


def test_mirror_images_are_entries_of_their_own(folder: Path | None, tmp_path: Path):
    jobs = [*jobs_in(tmp_path, 3, flip=True), job_for(draw_picture(tmp_path / "plain.png", 99))]

    latents = encode_latents(jobs, open_cache(folder), Encoder(), batch_size=2)

    wanted = torch.stack([expected(jobs[1], flip=True), expected(jobs[0]), expected(jobs[2], flip=True)])
    assert torch.equal(wanted, latents.read([1, 0, 2], [True, False, True]))
    with pytest.raises(AssertionError):
        latents.read([3], [True])


def test_second_run_encodes_nothing(tmp_path: Path):
    jobs = jobs_in(tmp_path, 5, flip=True)
    first = encode_latents(jobs, open_cache(tmp_path / "c"), Encoder()).read([0, 1, 2, 3, 4], [True] * 5)
    encoder = Encoder()
    cache = open_cache(tmp_path / "c")

    assert missing_latents(jobs, cache) == []
    latents = encode_latents(jobs, cache, encoder)

    assert encoder.batches == []
    assert torch.equal(first, latents.read([0, 1, 2, 3, 4], [True] * 5))


def _encoded_anew(before: list[LatentJob], after: list[LatentJob], folder: Path, **options: str) -> int:
    encode_latents(before, open_cache(folder), Encoder())
    encoder = Encoder()
    latents = encode_latents(after, open_cache(folder, **options), encoder)
    if not options:
        for position, job in enumerate(after):
            assert torch.equal(expected(job), latents.read([position])[0])
    return sum(encoder.batches)


def test_changed_picture_is_encoded_again_alone(tmp_path: Path):
    jobs = jobs_in(tmp_path, 4)
    encode_latents(jobs, open_cache(tmp_path / "c"), Encoder())
    draw_picture(jobs[2].pixels.path, 200)

    assert _encoded_anew([], jobs, tmp_path / "c") == 1


@pytest.mark.parametrize(
    "change",
    [
        {"crop": (8, 0, 72, 64), "resized": (80, 64)},
        {"resized": (80, 64)},
        {"interpolation": "nearest", "resized": (70, 70)},
        {"background": (0, 0, 0)},
        {"orientation": 2},
    ],
)
def test_another_cut_is_another_entry(change: dict, tmp_path: Path):
    jobs = jobs_in(tmp_path, 2)
    changed = [LatentJob(pixels=replace(job.pixels, **change)) for job in jobs]

    assert _encoded_anew(jobs, changed, tmp_path / "c") == 2


@pytest.mark.parametrize("change", [{"vae_fingerprint": "e" * 64}, {"dtype": "float16"}])
def test_another_vae_or_precision_is_another_cache(change: dict, tmp_path: Path):
    jobs = jobs_in(tmp_path, 2)

    assert _encoded_anew(jobs, jobs, tmp_path / "c", **change) == 2


def test_another_bucket_is_another_entry(tmp_path: Path):
    """sd-scripts' caches once passed a 384x640 latent off as 576x960."""
    path = draw_picture(tmp_path / "a.png", 1)
    larger = LatentJob(pixels=PixelJob(path=path, resized=(128, 128), crop=(0, 0, 128, 128)))

    assert _encoded_anew([job_for(path)], [larger], tmp_path / "c") == 1


def test_mirroring_wanted_later_is_added(tmp_path: Path):
    jobs = jobs_in(tmp_path, 2)
    encode_latents(jobs, open_cache(tmp_path / "c"), Encoder())
    mirrored = [replace(job, flip=True) for job in jobs]

    latents = encode_latents(mirrored, open_cache(tmp_path / "c"), Encoder())

    assert torch.equal(expected(jobs[1], flip=True), latents.read([1], [True])[0])


def test_moved_and_touched_pictures_are_read_but_not_encoded(tmp_path: Path):
    """The content counts, not the name."""
    jobs = jobs_in(tmp_path, 3)
    encode_latents(jobs, open_cache(tmp_path / "c"), Encoder())
    moved = [job_for(Path(shutil.copy(job.pixels.path, tmp_path / f"moved{i}.png"))) for i, job in enumerate(jobs)]
    os.utime(jobs[0].pixels.path, ns=(1, 1))

    assert _encoded_anew([], [*moved, jobs[0]], tmp_path / "c") == 0


def test_progress_counts_pictures_to_encode(tmp_path: Path):
    jobs = jobs_in(tmp_path, 5)
    encode_latents(jobs[:1], open_cache(tmp_path / "c"), Encoder())
    seen: list[tuple[int, int]] = []

    encode_latents(
        jobs, open_cache(tmp_path / "c"), Encoder(), batch_size=3, progress=lambda done, todo: seen.append((done, todo))
    )

    assert seen == [(3, 4), (4, 4)]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 61_000.0, -65_520.0])
def test_values_that_cannot_be_trained_on_are_refused_by_name(value: float, folder: Path | None, tmp_path: Path):
    """fp16 VAEs overflow on some pictures; nothing of the batch is kept."""
    jobs = jobs_in(tmp_path, 3)

    def poisoned(images_BHWC: Tensor, seeds: Sequence[int]) -> Tensor:
        latents = Encoder()(images_BHWC, seeds)
        latents[1, 2, 3, 4] = value
        return latents

    cache = open_cache(folder, dtype="float16")
    with pytest.raises(EngineError, match=r"1\.png: its latents reach .*no_half_vae"):
        encode_latents(jobs, cache, poisoned, batch_size=3)

    assert len(missing_latents(jobs, cache)) == 3


def test_unreadable_picture_stops_with_its_name_and_keeps_the_others(tmp_path: Path):
    jobs = jobs_in(tmp_path, 4)
    jobs[2].pixels.path.write_bytes(b"broken")
    cache = open_cache(tmp_path / "c")

    with pytest.raises(EngineError, match=r"2\.png"):
        encode_latents(jobs, cache, Encoder())

    assert [jobs[2].pixels.path, jobs[3].pixels.path] == [job.pixels.path for job in missing_latents(jobs, cache)]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith(("pixels", "latents"))]


def test_interrupted_encoding_goes_on_where_it_stopped(tmp_path: Path):
    jobs = jobs_in(tmp_path, 6)

    class Stop(Exception):  # noqa: N818 - no error
        pass

    def stop(done: int, _: int) -> None:
        if done == 4:
            raise Stop

    with pytest.raises(Stop):
        encode_latents(jobs, open_cache(tmp_path / "c"), Encoder(), batch_size=2, progress=stop)

    assert _encoded_anew([], jobs, tmp_path / "c") == 2


def test_damaged_record_is_encoded_again_while_training(tmp_path: Path):
    """One flipped bit costs one picture's encoding and no wrong number."""
    jobs = jobs_in(tmp_path, 3)
    encode_latents(jobs, open_cache(tmp_path / "c"), Encoder())
    (file,) = (tmp_path / "c").rglob("*.bin")
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    encoder = Encoder()
    latents = encode_latents(jobs, open_cache(tmp_path / "c"), encoder)

    read = latents.read([0, 1, 2, 1])

    assert torch.equal(torch.stack([expected(jobs[place]) for place in (0, 1, 2, 1)]), read)
    assert encoder.batches == [1]
    assert missing_latents(jobs, open_cache(tmp_path / "c")) == []


def test_processes_share_the_work_and_see_each_others(tmp_path: Path):
    """Each encodes its part into its own file; then all of them find all."""
    jobs = jobs_in(tmp_path, 6)
    caches = [open_cache(tmp_path / "c"), open_cache(tmp_path / "c")]
    for cache in caches:
        missing_latents(jobs, cache)
    for rank, cache in enumerate(caches):
        encode_latents(jobs[rank::2], cache, Encoder())

    for cache in caches:
        cache.sync()
        encoder = Encoder()
        latents = encode_latents(jobs, cache, encoder)
        assert encoder.batches == []
        assert torch.equal(torch.stack([expected(job) for job in jobs]), latents.read(range(6)))


def test_too_full_a_disk_is_refused_before_the_first_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(100, 99, 1000))
    encoder = Encoder()

    with pytest.raises(EngineError, match=r"the latents need .* MB but the disk has"):
        encode_latents(jobs_in(tmp_path, 2), open_cache(tmp_path / "c"), encoder)

    assert encoder.batches == []


def test_float16_halves_the_file_within_its_precision(tmp_path: Path):
    jobs = jobs_in(tmp_path, 2)

    latents = encode_latents(jobs, open_cache(tmp_path / "c", dtype="float16"), Encoder())

    (file,) = (tmp_path / "c").rglob("*.bin")
    assert file.stat().st_size == 2 * 2 * 4 * 8 * 8
    assert latents.read([0]).dtype == torch.float16
    torch.testing.assert_close(latents.read([0])[0].float(), expected(jobs[0]), rtol=1e-3, atol=0)


@pytest.fixture(scope="module")
def vae() -> AutoencoderKL:
    return AutoencoderKL.from_pretrained(GOLDEN / "tiny_sd1" / "vae").eval()


def test_real_vae_gives_one_keyed_draw_of_its_posterior(vae: AutoencoderKL):
    images_BHWC = torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        posterior = vae.encode(images_BHWC.permute(0, 3, 1, 2) / 127.5 - 1).latent_dist

    drawn = encode_with_vae(vae, images_BHWC, [7, 8])

    noise = torch.stack([torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in (7, 8)])
    torch.testing.assert_close(drawn, posterior.mean + posterior.std * noise)
    torch.testing.assert_close(encode_with_vae(vae, images_BHWC[1:], [8])[0], drawn[1], atol=1e-5, rtol=0)


def test_cached_latents_are_consistent_with_sd_scripts(vae: AutoencoderKL, golden: Path, tmp_path: Path):
    """Its latents of the same real picture lie in the same posterior: the noise of either is standard normal."""
    from safetensors.torch import load_file

    latents = load_file(golden / "loss_trajectory.safetensors")["53416a91bd78"][0] / 0.18215
    path = golden / "dataset" / "images" / "l_exact_bucket.png"
    job = job_for(path, (256, 128))
    ours = encode_latents([job], open_cache(tmp_path), lambda *given: encode_with_vae(vae, *given)).read([0])[0]
    with torch.no_grad():
        image_HWC = torch.from_numpy(load_pixels(job.pixels).pixels_HWC.copy())
        posterior = vae.encode(image_HWC.permute(2, 0, 1)[None] / 127.5 - 1).latent_dist

    for found in (latents, ours):
        noise = (found - posterior.mean[0]) / posterior.std[0]
        assert abs(noise.mean()) < 0.05
        assert noise.std() == pytest.approx(1, abs=0.05)


def test_fingerprint_names_weights_precision_and_configuration(vae: AutoencoderKL):
    again = AutoencoderKL.from_pretrained(GOLDEN / "tiny_sd1" / "vae")
    assert fingerprint(vae) == fingerprint(again)
    assert fingerprint(vae) != fingerprint(vae, "another use")
    with torch.no_grad():
        next(again.parameters()).view(-1)[0] += 1e-3
    assert fingerprint(vae) != fingerprint(again)
    assert fingerprint(vae) != fingerprint(AutoencoderKL.from_pretrained(GOLDEN / "tiny_sd1" / "vae").half())
