"""Which posts training has seen: the secret that keys their hashes, and the guard of evaluations."""

import logging
import re
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from psy_agents_noaug.data.seen import KeyedHashes, OpenHashes, SeenPosts
from psy_agents_noaug.data.splits import WHOLE, shown_split
from psy_agents_noaug.errors import CheckpointError, first_of
from psy_agents_noaug.run.data import PreparedData
from psy_agents_noaug.run.directory import RunDirectory, directory_of
from psy_agents_noaug.training.checkpoint import Checkpoint
from psy_agents_noaug.utils.files import write_bytes

logger = logging.getLogger(__name__)

NOT_CHECKED = "seen_posts_unchecked"  # among the figures of a split
_REMEDY = "Divide the data as in training, or leave these posts out by `data.splits`"
_REMEDIES = {WHOLE: "Leave these posts out of the tables"}
_KEY_BYTES = 32
_KEY = re.compile(rf"[0-9a-f]{{{2 * _KEY_BYTES}}}\s*")


def own_secret(directory: RunDirectory) -> bytes:
    """Return the secret of a run, which is made if the run has none. Nothing that is trained uses it.

    Raises:
        CheckpointError: the file is damaged or cannot be read.
        StorageError: it cannot be written.
    """
    path = directory.seen_posts_key
    if not path.exists():
        secret = secrets.token_bytes(_KEY_BYTES)
        write_bytes(path, f"{secret.hex()}\n".encode(), mode=0o600)
        return secret
    found = _read_secret(path)
    if isinstance(found, str):
        raise CheckpointError(
            f"{found}. Put a copy of it in its place; or remove it, and which posts the checkpoints so "
            "far have seen cannot be checked any more."
        )
    return found


def _read_secret(path: Path) -> bytes | str:
    """Return the secret in a file, or why there is none."""
    try:
        content = path.read_bytes().decode("ascii", "replace")
    except FileNotFoundError:
        return f"{path} is not there"
    except OSError as error:
        return f"{path} cannot be read ({error.strerror})"
    return bytes.fromhex(content) if _KEY.fullmatch(content) else f"{path} is damaged"


def is_shared(checkpoint: Checkpoint) -> bool:
    """Return whether a checkpoint was made to be shared, by `run.sharing.shareable`."""
    return "splits" not in checkpoint.metadata["fingerprints"]


def on_training_data(checkpoint: Checkpoint, data: PreparedData) -> bool | None:
    """Return whether data are the training's corpus in the training's division.

    Returns:
        None: they are its corpus, but the checkpoint was made to be shared and does not say how it was
        divided.
    """
    recorded, now = checkpoint.metadata["fingerprints"], data.fingerprints()
    if recorded["corpus"] == now["corpus"] and is_shared(checkpoint):
        return None
    same: bool = recorded == now
    return same


def check_unseen(
    checkpoint: Checkpoint, data: PreparedData, split: str, path: Path
) -> dict[str, int]:
    """Refuse a split of other data with posts that training or the thresholds have seen.

    Posts of the same text are known by their hashes, for which the secret of the run is needed. Warns of
    posts that were seen with an edit or in a quotation, and of authors whose posts were seen. This holds
    for any corpus. On the training's own corpus and division, duplicates across splits have been
    reported, and train and val are judged under these names.

    Returns:
        Figures on the split: how many posts there are warnings of, or that it could not be checked; none
        on the training's own data.

    Raises:
        CheckpointError: with the ids of the posts; or it is the training's corpus, as a whole, or in
            another division that cannot be checked.
    """
    warn_of_open_hashes(checkpoint, path)
    same_corpus = checkpoint.metadata["fingerprints"]["corpus"] == data.corpus.fingerprint
    if split == WHOLE and same_corpus:
        raise CheckpointError(
            f"`split={WHOLE}` evaluates a corpus as a whole, but {path} was trained on this one. "
            "Evaluate its test split (split=test), or name another corpus (`data`)."
        )
    on_own = on_training_data(checkpoint, data)
    if on_own:
        return {}
    remembered, shown = _remembered(checkpoint.metadata, path), shown_split(split)
    if isinstance(remembered, str):
        unchecked = f"Whether training has seen posts of {shown} cannot be checked: {remembered}."
        if same_corpus and on_own is False:
            raise CheckpointError(
                f"{unchecked} The corpus is the one that it was trained on, but divided in another way. "
                "Divide it as in training, or put the file of the secret back."
            )
        if same_corpus:
            unchecked += (
                " The corpus is the one that it was trained on: is it divided as in training?"
            )
        logger.warning("%s If training has seen them, figures on them are too good.", unchecked)
        return {NOT_CHECKED: 1}
    posts = data.posts(split)
    if known := remembered.same_texts(posts):
        raise CheckpointError(
            f"{path} has seen {len(known)} posts of {shown} in training, so figures on it would be too "
            f"good. {_REMEDIES.get(split, _REMEDY)}: {first_of(known)}."
        )
    if not remembered.n_bits:
        logger.warning(
            "%s is of a version that kept hashes of whole posts alone: posts of %s that training has "
            "seen with an edit, in a quotation, or with other HTML entities or invisible characters, "
            "are not found.",
            path,
            shown,
        )
        return {}
    near, by_authors = remembered.near_duplicates(posts), remembered.by_seen_authors(posts)
    relations = {
        "are near duplicates of posts that training has seen, or quote them or are quoted there": near,
        "have authors (group_id) of posts that training has seen": by_authors,
    }
    for relation, ids in relations.items():
        if ids:
            logger.warning(
                "%d of %d posts of %s %s, so figures on them are too good: %s",
                len(ids),
                len(posts),
                shown,
                relation,
                first_of(ids),
            )
    return {
        "n_near_duplicates_of_train": len(near),
        "n_posts_by_authors_of_train": len(by_authors),
    }


def _remembered(metadata: Mapping[str, Any], path: Path) -> SeenPosts | str:
    """Return what a checkpoint remembers of the posts, or why that cannot be used."""
    if "seen_texts" in metadata:
        return _of_open_hashes(metadata)
    seen = metadata.get("seen_posts")
    if seen is None:
        return f"{path} was made to be shared, and does not hold what that needs"
    secret = _read_secret(directory_of(path).seen_posts_key)
    if isinstance(secret, str):
        return f"{secret}, the secret of the run, without which the hashes in {path} mean nothing"
    hashes = KeyedHashes(secret)
    if hashes.of_key() != seen["key_check"]:
        return f"the secret beside {path} is not the one that its hashes were made with"
    return SeenPosts.from_metadata(seen, hashes=hashes)


def _of_open_hashes(metadata: Mapping[str, Any]) -> SeenPosts:
    """Read what 0.2.0 and earlier remembered; the earliest had no filter and no authors."""
    nothing = {"key": "", "authors": [], "n_bits": 0, "bits": torch.zeros(0, dtype=torch.uint8)}
    seen = metadata.get("seen_posts", nothing)
    return SeenPosts.from_metadata(
        {**seen, "texts": metadata["seen_texts"]}, hashes=OpenHashes(seen["key"])
    )


def warn_of_open_hashes(checkpoint: Checkpoint, path: Path) -> None:
    """Warn of a checkpoint that gives away which posts it was trained on."""
    if "seen_texts" in checkpoint.metadata:
        logger.warning(
            "%s is of version 0.2.0 or earlier, whose hashes need no secret: whoever has posts can find "
            "out from it which of them it was trained on. Do not share it. Train again, or export it "
            "(`psy-agents export`), which leaves them out.",
            path,
        )
