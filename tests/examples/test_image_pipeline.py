"""The image pipeline of ``examples/``: real files in, real e-mails out."""

from __future__ import annotations

import asyncio
import csv
import os
import re
import signal
import subprocess
import sys
from collections import defaultdict
from email import message_from_bytes, policy
from email.message import EmailMessage
from pathlib import Path

import pytest

for package in ("aiosmtpd", "aiosmtplib", "PIL", "sklearn"):
    pytest.importorskip(package, reason="the demo's packages are not installed")

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # the examples are no part of the installed package

import numpy as np  # noqa: E402
from examples.image_pipeline import classifier, images, mail, pipeline, samples  # noqa: E402
from examples.image_pipeline.mail import PostOffice, Submission  # noqa: E402
from examples.image_pipeline.mail_server import MailServer  # noqa: E402
from PIL import Image  # noqa: E402

import taskloom as tl  # noqa: E402

GOOD, BROKEN = 8, 2
HANG_S = 120


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "examples.image_pipeline", *arguments]


def environment() -> dict[str, str]:
    paths = [os.environ.get("PYTHONPATH", ""), str(ROOT / "src")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}


def run_demo(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments),
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=HANG_S,
        check=False,
    )


def read_letters(folder: Path) -> dict[str, list[EmailMessage]]:
    """The stored letters of every receiver, by subject."""
    letters = defaultdict(list)
    for path in folder.glob("*.eml"):
        letter = message_from_bytes(path.read_bytes(), policy=policy.default)
        assert isinstance(letter, EmailMessage)
        letters[str(letter["To"])].append(letter)
    for some in letters.values():
        some.sort(key=lambda letter: str(letter["Subject"]))
    return letters


def cells(output: str, row: str) -> list[str]:
    """The numbers of one row of the table."""
    (line,) = re.findall(rf"^  {row}  +(.*)$", output, re.MULTILINE)
    return re.split(r"\s{2,}", line.strip())


@pytest.fixture(scope="module")
def finished(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A run of eight images and two broken ones, with everything it has stored."""
    keep = tmp_path_factory.mktemp("demo") / "kept"
    run = run_demo(
        *("--count", str(GOOD), "--broken", str(BROKEN)),
        *("--workers", "2", "--smtp-delay", "5", "--keep", str(keep)),
    )
    assert run.returncode == 0, run.stdout + run.stderr
    return keep, run


@pytest.fixture
def results(finished: tuple[Path, subprocess.CompletedProcess[str]]) -> list[dict[str, str]]:
    with (finished[0] / "results.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("folder", ["mails", "mails-by-tasks", "mails-one-by-one"])
def test_every_sender_gets_a_receipt_and_one_answer(finished, results, folder):
    letters = read_letters(finished[0] / folder)

    assert len(results) == GOOD + BROKEN
    assert set(letters) == {row["sender"] for row in results}
    for row in results:
        answer = (
            f"Your image {row['image']} could not be read"
            if row["problem"]
            else f"Your image {row['image']} shows a {row['digit']}"
        )
        subjects = [str(letter["Subject"]) for letter in letters[row["sender"]]]
        assert subjects == [f"We have received {row['image']}", answer]


def test_the_letter_says_the_digit_that_the_results_say(finished, results):
    letters = read_letters(finished[0] / "mails")
    for row in results:
        if not row["problem"]:
            body = letters[row["sender"]][1].get_content()
            assert f"Digit: {row['digit']}\n" in body.replace("\r\n", "\n")


def test_a_broken_image_gets_a_letter_that_says_why(finished, results):
    letters = read_letters(finished[0] / "mails")
    broken = [row for row in results if row["problem"]]

    assert len(broken) == BROKEN
    for row in broken:
        assert row["digit"] == ""
        assert row["problem"] in letters[row["sender"]][1].get_content()
    reasons = " ".join(row["problem"] for row in broken)
    assert "damaged" in reasons
    assert "not an image" in reasons


def test_the_table_tells_what_has_happened(finished, results):
    output = finished[1].stdout
    right = sum(row["digit"] == row["truth"] for row in results if not row["problem"])

    assert cells(output, "images") == [str(GOOD + BROKEN)] * 3
    assert cells(output, "broken images") == [str(BROKEN)] * 3
    assert cells(output, "accuracy") == [f"{100 * right / GOOD:.1f} %"] * 3
    assert right >= GOOD - 1
    assert cells(output, "e-mails delivered") == [f"{2 * (GOOD + BROKEN)} of 20"] * 3
    assert len(cells(output, "seconds")) == 3
    assert all(re.fullmatch(r"\d+\.\d x", cell) for cell in cells(output, "speed-up"))


def test_it_says_what_the_actors_gained(finished):
    output = finished[1].stdout

    assert cells(output, "classifier loaded") == ["twice", f"{GOOD} times", "once"]
    opened, *others = cells(output, "mail connections")
    assert others == ["20", "20"]
    assert 1 <= int(opened) <= 2 * (GOOD + BROKEN)
    assert f"the classifier was loaded twice instead of {GOOD}" in output
    assert f"{opened} connections to the mail server" in output.replace("\n", " ")
    assert re.search(r"\d+\.\d\d s\ninstead of \d+\.\d\d s: \d+\.\d\d x as fast", output)


def test_own_images_go_to_the_mail_server_that_is_named(tmp_path):
    sent = tmp_path / "sent"
    samples.write_photos(sent, count=2, broken=0)
    (sent / samples.LABELS).unlink()
    (sent / "notes.txt").write_text("no image and not called one")

    with MailServer(tmp_path / "elsewhere") as server:
        office = f"{server.office.host}:{server.office.port}"
        run = run_demo("--images", str(sent), "--smtp", office, "--workers", "1")

    assert run.returncode == 0, run.stdout + run.stderr
    assert cells(run.stdout, "e-mails delivered") == ["4 of 4"]
    assert cells(run.stdout, "accuracy") == ["unknown"]
    assert "speed-up" not in run.stdout
    assert {len(letters) for letters in read_letters(tmp_path / "elsewhere").values()} == {2}


@pytest.mark.skipif(os.name != "posix", reason="process groups")
def test_ctrl_c_ends_it_and_leaves_no_process_behind():
    with subprocess.Popen(
        command("--count", "18", "--broken", "2", "--smtp-delay", "300"),
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,  # the demo and all its children are one group, as in a terminal
    ) as demo:
        try:
            assert demo.stdout is not None
            seen = ""
            while " of 20 " not in seen:  # it is in the middle of its work
                line = demo.stdout.readline()
                assert line, seen
                seen += line
            os.killpg(demo.pid, signal.SIGINT)
            rest, _ = demo.communicate(timeout=HANG_S)
            assert demo.returncode == 130, rest
            assert "Stopped" in rest
            assert "Traceback" not in rest
            with pytest.raises(ProcessLookupError):
                os.killpg(demo.pid, 0)
        finally:
            if demo.poll() is None:
                demo.kill()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--count", "0"], "a whole number from 1 on"),
        (["--smtp", "nowhere"], "HOST:PORT"),
        (["--images", "no-such-folder"], "is not a folder"),
        (["--keep", str(ROOT)], "not an empty folder"),
        (["--smtp", "mail.example:25", "--smtp-delay", "5"], "--smtp-delay is about"),
    ],
)
def test_a_wrong_option_is_refused_in_words(arguments, words, capsys):
    from examples.image_pipeline.__main__ import main

    with pytest.raises(SystemExit) as stopped:
        main(arguments)

    assert stopped.value.code == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("actors", [True, False])
def test_a_dead_mail_server_fails_the_letters_and_not_the_pipeline(tmp_path, actors):
    with MailServer(tmp_path / "closed") as server:
        office = server.office  # nobody listens there after this
    path = tmp_path / "photo.png"
    path.write_text("no image")
    done: list[pipeline.Outcome] = []

    async def serve() -> list[pipeline.Outcome]:
        async with tl.init(num_cpus=1, resources={"smtp": pipeline.CONNECTIONS}):
            nobody: tl.ObjectRef[classifier.Model] = tl.put(None)
            submissions = [Submission(path, f"user-{n}@pipeline.example") for n in range(2)]
            hands = pipeline.Actors(nobody, office, 1) if actors else pipeline.Tasks(nobody, office)
            return await pipeline.serve_all(submissions, hands, done.append)

    outcomes = asyncio.run(serve())

    assert len(done) == len(outcomes) == 2
    for outcome in outcomes:
        assert outcome.problem is not None
        assert outcome.letters == 0
        assert len(outcome.failures) == 2


def test_the_postman_keeps_connections_and_replaces_those_that_the_server_has_closed(tmp_path):
    submission = Submission(Path("photo.png"), "user@pipeline.example")

    async def mail_around_a_restart() -> list[int]:
        opened = []
        async with tl.init(num_cpus=1):
            with MailServer(tmp_path / "first") as server:
                postman = pipeline.Postman.remote(server.office)
                for _ in range(5):
                    await postman.send_receipt.remote(submission)
                refs = [postman.send_receipt.remote(submission) for _ in range(60)]
                await asyncio.gather(*refs)
                assert server.delivered == 65
                opened.append(server.connections)
                assert await postman.opened.remote() == server.connections
                server.hang_up()
                await postman.send_receipt.remote(submission)
                opened.append(server.connections)
        return opened

    before, after = asyncio.run(mail_around_a_restart())
    assert 1 <= before <= pipeline.CONNECTIONS
    assert after == before + 1


def damaged(path: Path, keep: int) -> Path:
    pixels = np.random.default_rng(0).integers(0, 255, (64, 64), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    path.write_bytes(path.read_bytes()[:keep])
    return path


@pytest.mark.parametrize("keep", [0, 4, 20, 40, 200, 2000])
def test_a_png_that_ends_too_early_is_a_bad_image(tmp_path, keep):
    with pytest.raises(images.BadImage) as caught:
        images.load(damaged(tmp_path / "cut.png", keep))

    assert caught.value.name == "cut.png"
    assert caught.value.reason


def test_a_file_that_is_not_there_is_a_bad_image(tmp_path):
    with pytest.raises(images.BadImage, match="not there"):
        images.load(tmp_path / "gone.png")


def test_a_whole_png_of_any_colour_mode_is_loaded(tmp_path):
    for mode in ("L", "RGB", "RGBA", "P", "1"):
        path = tmp_path / f"{mode}.png"
        Image.new(mode, (30, 20)).save(path)
        assert images.load(path).pixels.shape == (20, 30)


def test_a_blank_image_has_a_verdict_too(tmp_path):
    path = tmp_path / "blank.png"
    Image.new("L", (100, 60), 255).save(path)

    verdict = classifier.classify(images.load(path), classifier.train())

    assert 0 <= verdict.digit <= 9


def test_no_digit_of_the_test_was_learned_from():
    seen, unseen = classifier.split_digits()

    assert len(seen.images) + len(unseen.images) == 1797
    assert not {tuple(image.ravel()) for image in seen.images} & {
        tuple(image.ravel()) for image in unseen.images
    }


def test_the_mail_server_stores_every_letter_as_it_was_sent(tmp_path):
    submission = Submission(Path("größer & schöner.png"), "user@pipeline.example")

    async def send_three(office: PostOffice) -> None:
        await asyncio.gather(*(mail.send(mail.receipt(submission), office) for _ in range(3)))

    with MailServer(tmp_path) as server:
        asyncio.run(send_three(server.office))
        assert server.delivered == 3

    (letters,) = read_letters(tmp_path).values()
    assert len(letters) == 3
    assert letters[0]["Subject"] == "We have received größer & schöner.png"
