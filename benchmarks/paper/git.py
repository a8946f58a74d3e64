"""Git in the tree, read only."""

import subprocess

from benchmarks.paper import paths
from common.errors import EncoreError


def commit_of(revision: str) -> str:
    """The full hash of a commit, branch or tag; EncoreError when git knows none of that name."""
    try:
        return git("rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}").strip()
    except subprocess.CalledProcessError as error:
        raise EncoreError(f"{revision!r} is no commit of this repository") from error


def blobs(names: list[str]) -> list[str]:
    """Texts of git objects such as "HEAD:README.md", in one call; "" for one that is not there."""
    if not names:
        return []
    request = "\n".join(names).encode() + b"\n"
    command = ["git", "-C", str(paths.root()), "cat-file", "--batch"]
    try:
        answer = subprocess.run(command, input=request, capture_output=True, check=True, timeout=60).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise EncoreError(f"git cat-file failed in {paths.root()}: {error}") from error
    texts, start = [], 0
    for _ in names:
        end = answer.index(b"\n", start)
        header, start = answer[start:end], end + 1
        if header.endswith(b" missing"):
            texts.append("")
            continue
        size = int(header.rsplit(b" ", 1)[1])
        texts.append(answer[start : start + size].decode("utf-8", "replace"))
        start += size + 1
    return texts


def git(*arguments: str) -> str:
    """Output of a git command in the tree; EncoreError where there is no git or no repository."""
    command = ["git", "-C", str(paths.root()), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    except OSError as error:
        raise EncoreError("git is not installed") from error
    except subprocess.CalledProcessError as error:
        if subprocess.run([*command[:3], "rev-parse", "--git-dir"], capture_output=True, timeout=20).returncode:
            raise EncoreError(f"{paths.root()} is not a git repository") from error
        raise
