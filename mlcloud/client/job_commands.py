"""`%mlcloud jobs …`, and the same in a shell: jobs listed, shown, cancelled, run again, removed."""

from __future__ import annotations

import shlex
from typing import Any

from mlcloud.errors import UsageError


def run(words: list[str]) -> Any:
    """Without words, the list. Raises `UsageError` and `NotFound`."""
    from mlcloud.client import jobs
    from mlcloud.client.api import default
    from mlcloud.magics.parser import Parser

    parser = Parser(prog="%mlcloud jobs", allow_abbrev=False)
    known = ["show", "logs", "cancel", "rerun", "rm", "prune"]
    parser.add_argument("what", nargs="?", choices=known)
    parser.add_argument("id", nargs="*", help="a job's id, or the beginning of it")
    parser.add_argument("--follow", action="store_true", help="logs: as they come, until its end")
    parser.add_argument("--item", type=int, help="logs: of this item alone")
    parser.add_argument("--failed", action="store_true", help="rerun: only the items that failed")
    parser.add_argument("--now", action="store_true", help="rerun: with the packages of today")
    parser.add_argument("--older", metavar="30d", help="prune: those that ended so long ago")
    parser.add_argument("--dry", action="store_true", help="prune: only tell which")
    parser.add_argument("--json", action="store_true", help="print all that is known of them")
    options = parser.read(shlex.join(words))
    client = default()
    if options.what is None:
        found = jobs.listed(client)
        if not options.json:
            return found
        print(f"[{','.join(each.model_dump_json() for each in found)}]")
        return None
    if options.what == "prune":
        if not options.older:
            raise UsageError("%mlcloud jobs prune needs --older, such as --older 30d")
        return jobs.prune(client, options.older, dry=options.dry)
    if not options.id or (len(options.id) > 1 and options.what != "rm"):
        raise UsageError(f"%mlcloud jobs {options.what} needs a job's id: `%mlcloud jobs` has them")
    if options.what == "rm":
        for each in [_whole(client, given) for given in options.id]:
            jobs.attach(client, each).remove()
            print(f"removed {each}")
        return None
    job = jobs.attach(client, _whole(client, options.id[0]))
    if options.what == "logs":
        text = job.logs(item=options.item, follow=options.follow)
        if not options.follow:
            print(text, end="")
        return None
    if options.what == "cancel":
        job.cancel()
        return job
    if options.what == "rerun":
        packages = "now" if options.now else "then"
        return job.rerun(failed_only=options.failed, packages=packages)
    if options.json:
        print(job.info.model_dump_json(indent=2))
        return None
    return job


def _whole(client: Any, begins: str) -> str:
    """The one id that begins so; `begins` itself where none that is listed does."""
    ids = [each.id for each in client.jobs()]
    found = [each for each in ids if each.startswith(begins)]
    if len(found) > 1 and begins not in found:
        raise UsageError(f"{begins} could be {', '.join(found)}")
    return found[0] if len(found) == 1 else begins
