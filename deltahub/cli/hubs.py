"""Commands on a hub: push, pull, list, versions, tag, untag, remove, verify, gc."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from deltahub.cli import common, signing, syncs

if TYPE_CHECKING:
    from deltahub.hub import Hub
    from deltahub.stores.paced import Pace


def add(commands: common.Commands) -> None:
    push = common.command(commands, "push", _push, "store a delta in the hub as a new version of its task")
    push.add_argument("file", metavar="FILE", type=Path, help="a .delta file")
    push.add_argument("--tag", metavar="T", action="append", default=[], help="tag to move to it; may be repeated")
    push.add_argument(
        "--values", choices=["exact", "bf16", "int8", "int4"], default="exact",
        help="round values, dense tensors and adapter factors; what they become is then the task (default: exact)",
    )  # fmt: skip
    push.add_argument(
        "--head", choices=["exact", "bf16", "int8", "int4"], default="exact",
        help="round the head, but not layers of it that all tasks share (default: exact)",
    )  # fmt: skip
    push.add_argument(
        "--check", action="store_true", help="read what a remote hub has already, so that damage there is healed"
    )
    signing.key_option(push, "--sign")
    common.mask_option(push)
    common.hub_option(push)
    common.pace_options(push)

    pull = common.command(commands, "pull", _pull, "write tasks of the hub to .delta files, every byte verified")
    pull.add_argument(
        "task", metavar="TASK[@N|:TAG]", nargs="+", help="newest version, version N, or what TAG names; or 'GLOB[:TAG]'"
    )
    pull.add_argument(
        "-o", "--output", metavar="FILE", type=Path, help="file, or folder for TASK.delta (default: here)"
    )
    pull.add_argument("--force", action="store_true", help="replace another file of that name")
    common.signature_option(pull)
    common.hub_option(pull)
    common.pace_options(pull)

    syncs.add(commands)
    _reading(commands, "list", _list, "list the tasks of the hub")
    _reading(commands, "versions", _versions, "list the versions of a task").add_argument(
        "task", metavar="TASK", help="name of a task"
    )

    tag = common.command(commands, "tag", _tag, "make a tag name a version: `deltahub tag sst2@3 prod`")
    tag.add_argument("version", metavar="TASK[@N|:TAG]", help="version to name (default: the newest)")
    tag.add_argument("tag", metavar="TAG", help="tag to set or move")
    tag.add_argument("--delete", action="store_true", help="remove the tag instead")
    common.hub_option(tag)

    remove = common.command(
        commands, "remove", _remove, "remove a task or one version", "Space is given back by `deltahub gc`."
    )
    remove.add_argument("task", metavar="TASK[@N]", help="a task with all versions and tags, or one version")
    remove.add_argument("--force", action="store_true", help="also what a tag names")
    common.hub_option(remove)

    verify = _reading(commands, "verify", _verify, "read and re-hash everything; names what is bad and exits with 1")
    verify.add_argument(
        "--repair",
        metavar="URL",
        help="mend what is bad with good copies from another hub; exits with 0 if nothing is left",
    )
    common.pace_options(verify)
    gc = _reading(commands, "gc", _gc, "delete what no version can reach")
    gc.add_argument("--dry-run", action="store_true", help="only say what would go")
    gc.add_argument(
        "--grace", type=float, metavar="SECONDS", default=3600.0,
        help="spare what is younger, a push may be under way (default: 3600)",
    )  # fmt: skip


def _reading(commands: common.Commands, name: str, run: common.Run, summary: str) -> argparse.ArgumentParser:
    made = common.command(commands, name, run, summary)
    common.hub_option(made)
    common.json_option(made)
    return made


def _push(options: argparse.Namespace) -> None:
    from deltahub.transfer import push_file

    key = signing.signing_key(options)
    hub = common.open_hub(options, create=True)
    with common.progress("push") as show:
        version = push_file(
            options.file, hub, tags=options.tag, mask=common.load_mask(options.mask), values=options.values,
            head=options.head, check=options.check, sign=key, progress=show,
        )  # fmt: skip
    record = hub.version(f"{version.task}@{version.number}")
    if version.new:
        common.words(f"{common.size(record.size)} stored as {common.size(record.stored)} in {options.hub}")
    else:
        common.words(f"already there as {record.reference}; nothing stored")
    if key is not None:
        common.words(f"signed by {key.verify_key.id}")
    print(f"{version.task}@{version.number} {version.digest}")


def _pull(options: argparse.Namespace) -> None:
    from deltahub.names import parse_reference
    from deltahub.transfer import is_glob, pull_file, pull_files

    path = options.output or Path(".")
    if len(options.task) > 1 or is_glob(options.task[0]):
        with common.progress("pull") as show:
            pulled = pull_files(common.open_hub(options), options.task, path, force=options.force, progress=show)
        common.words(f"{common.count(len(pulled), 'task')} verified")
        for one in pulled:
            print(path / f"{one.task}.delta")
        return
    [reference] = options.task
    if path.is_dir():
        path /= f"{parse_reference(reference)[0]}.delta"
    with common.progress("pull") as show:
        version = pull_file(common.open_hub(options), reference, path, force=options.force, progress=show)
    common.words(f"{version.task}@{version.number} {version.digest[:16]}, verified")
    print(path)


def _list(options: argparse.Namespace) -> None:
    tasks = common.open_hub(options).tasks()
    if options.json:
        common.print_json([asdict(task) for task in tasks])
    elif tasks:
        common.print_table(
            ["task", "newest", "versions", "tags"],
            ([task.task, f"@{task.newest}", task.versions, ", ".join(task.tags)] for task in tasks),
        )
    else:
        common.words(f"no task in {options.hub} yet; `deltahub push FILE` adds one")


def _versions(options: argparse.Namespace) -> None:
    hub = common.open_hub(options)
    records = hub.versions(options.task)
    tags = {number: [] for number in (record.number for record in records)}  # type: dict[int, list[str]]
    for tag, number in hub.tags(options.task).items():
        tags.setdefault(number, []).append(tag)
    signers = signing.signers(hub, options.task, records)
    rows = [
        {
            "version": record.reference, "pushed": record.pushed, "digest": record.digest, "size": record.size,
            "stored": record.stored, "tags": tags[record.number], "metrics": dict(record.manifest.metrics),
            "signed_by": [asdict(signer) for signer in signers[record.number]],
        }
        for record in records
    ]  # fmt: skip
    if options.json:
        common.print_json(rows)
        return
    common.print_table(
        ["version", "pushed", "digest", "size", "stored", "tags", "signed by", "metrics"],
        (
            [
                row["version"], row["pushed"], str(row["digest"])[:16], row["size"], row["stored"],
                ", ".join(tags[record.number]), ", ".join(map(signing.shown, signers[record.number])),
                ", ".join(f"{name} {value:.4g}" for name, value in record.manifest.headline.items()),
            ]
            for row, record in zip(rows, records, strict=True)
        ),
    )  # fmt: skip


def _tag(options: argparse.Namespace) -> None:
    hub = common.open_hub(options)
    record = hub.version(options.version)
    if options.delete:
        hub.untag(record.task, options.tag)
        common.words(f"{record.task}:{options.tag} is gone")
        return
    hub.tag(record.task, record.number, options.tag)
    print(f"{record.task}:{options.tag} is {record.reference}")


def _remove(options: argparse.Namespace) -> None:
    removed = common.open_hub(options).remove(options.task, force=options.force)
    common.words(f"removed {', '.join(removed)}; `deltahub gc` gives the space back once it is an hour old")


def _verify(options: argparse.Namespace) -> None:
    from deltahub.errors import IntegrityError
    from deltahub.hub import Hub

    pace = common.pace_of(options)
    hub = Hub.open(options.hub, create=False, pace=pace)
    with common.progress("verify") as show:
        report = hub.verify(progress=show, repair=_other_hub(options, hub, pace))
    if options.json:
        common.print_json(asdict(report))
    else:
        for one in report.repaired:
            print(common.printable(f"{one.key}: mended: {one.how}"))
        for problem in report.problems:
            needed = f" (needed by {', '.join(problem.needed_by)})" if problem.needed_by else ""
            left = f"; not mended: {problem.unmended}" if problem.unmended else ""
            print(common.printable(f"{problem.key}: {problem.problem}{needed}{left}"))
        read = [common.count(report.versions, "version"), common.count(report.blobs, "blob"), common.size(report.bytes)]
        read += [common.count(report.signatures, "signature")] if report.signatures else []
        common.words(f"{', '.join(read)} read; {len(report.problems) or 'nothing'} bad")
        if report.unchecked:
            unchecked = common.count(report.unchecked, "signature")
            common.words(f"{unchecked} not checked: that needs `pip install 'deltahub[sign]'`")
    if report.problems:
        raise IntegrityError(
            f"{options.hub} is damaged in {common.count(len(report.problems), 'place')}",
            hint="`deltahub verify --repair URL` fetches good copies from another hub; or push the named tasks again "
            "with --check",
        )


def _other_hub(options: argparse.Namespace, hub: Hub, pace: Pace | None) -> Hub | None:
    from deltahub.errors import UsageError
    from deltahub.hub import Hub

    if options.repair is None:
        return None
    other = Hub.open(options.repair, create=False, pace=pace)
    if other.store.url == hub.store.url:
        raise UsageError(f"--repair {options.repair}", expected="another hub than --hub")
    return other


def _gc(options: argparse.Namespace) -> None:
    hub = common.open_hub(options)
    report = hub.gc(dry_run=options.dry_run, grace_seconds=options.grace)
    if options.json:
        common.print_json(asdict(report))
        return
    for key in report.deleted:
        print(key)
    verb = "would delete" if options.dry_run else "deleted"
    common.words(
        f"{verb} {common.count(len(report.deleted), 'object')}, {common.size(report.bytes)}; "
        f"spared {report.spared} younger than {options.grace:.0f} s (--grace)"
    )
    if hub.store.url.startswith("hf://") and report.deleted:
        common.words("the repo's history keeps what was deleted until it is squashed (HfApi().super_squash_history)")
