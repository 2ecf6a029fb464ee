"""A disk that is full, in the supervisor or in the process of a job: the attempt crashes, with a code that says so."""

from __future__ import annotations

import errno

MISSING, DETAIL = "insufficient_storage", "there is no room left for the files of the job"
EXIT_STATUS = 75  # how the process of a job tells: EX_TEMPFAIL of sysexits.h, "try again later"
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def is_missing(error: BaseException) -> bool:
    return isinstance(error, OSError) and error.errno in _FULL
