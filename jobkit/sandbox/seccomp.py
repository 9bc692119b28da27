"""seccomp: system calls that this thread, and all that it starts, may not make any more.

What Landlock does not hold: sockets of every kind, new processes, programs, signals, modes and owners of files, memory
that is shared with other processes. A filter is a program of classic BPF (Documentation/userspace-api/seccomp_filter
of the kernel).
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct

NO_NEW_PRIVS, GET_SECCOMP, SET_SECCOMP, FILTER = 38, 21, 22, 2  # prctl

# system call -> its numbers on x86_64 and aarch64; those without a second do not exist there
DENIED: dict[str, tuple[int, int | None]] = {
    # the network, other processes' sockets, and a way to make both without these calls
    "socket": (41, 198), "socketpair": (53, 199), "io_uring_setup": (425, 425), "pidfd_getfd": (438, 438),
    # processes and programs; `clone` makes threads alone, see below
    "fork": (57, None), "vfork": (58, None), "execve": (59, 221), "execveat": (322, 281),
    # other processes of the same user
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "kcmp": (312, 272),
    "kill": (62, 129), "tkill": (200, 130), "tgkill": (234, 131), "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240), "pidfd_send_signal": (424, 424), "pidfd_open": (434, 434),
    "setpriority": (141, 140), "ioprio_set": (251, 30), "sched_setscheduler": (144, 119), "sched_setparam": (142, 118),
    "sched_setattr": (314, 274), "sched_setaffinity": (203, 122), "move_pages": (279, 239), "migrate_pages": (256, 238),
    "process_madvise": (440, 440), "process_mrelease": (448, 448),
    "shmget": (29, 194), "shmat": (30, 196), "shmctl": (31, 195), "msgget": (68, 186), "msgsnd": (69, 189),
    "msgrcv": (70, 188), "msgctl": (71, 187), "semget": (64, 190), "semop": (65, 193), "semctl": (66, 191),
    "semtimedop": (220, 192), "mq_open": (240, 180), "mq_unlink": (241, 181),
    "keyctl": (250, 219), "add_key": (248, 217), "request_key": (249, 218),
    # what Landlock lets happen to files
    "chmod": (90, None), "fchmod": (91, 52), "fchmodat": (268, 53), "fchmodat2": (452, 452), "chown": (92, None),
    "fchown": (93, 55), "lchown": (94, None), "fchownat": (260, 54), "setxattr": (188, 5), "lsetxattr": (189, 6),
    "fsetxattr": (190, 7), "setxattrat": (463, 463), "removexattr": (197, 14), "lremovexattr": (198, 15),
    "fremovexattr": (199, 16), "removexattrat": (466, 466), "file_setattr": (469, 469), "utime": (132, None),
    "utimes": (235, None), "utimensat": (280, 88), "futimesat": (261, None), "truncate": (76, 45),
    "open_by_handle_at": (304, 265),
    # what only an administrator may do, should a capability be left, and what widens the kernel's surface
    "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282), "unshare": (272, 97),
    "setns": (308, 268), "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51),
    "open_tree": (428, 428), "move_mount": (429, 429), "fsopen": (430, 430), "fsconfig": (431, 431),
    "fsmount": (432, 432), "fspick": (433, 433), "mount_setattr": (442, 442), "open_tree_attr": (467, 467),
    "init_module": (175, 105), "finit_module": (313, 273), "delete_module": (176, 106), "kexec_load": (246, 104),
    "kexec_file_load": (320, 294), "reboot": (169, 142), "swapon": (167, 224), "swapoff": (168, 225),
    "acct": (163, 89), "quotactl": (179, 60), "settimeofday": (164, 170), "clock_settime": (227, 112),
    "adjtimex": (159, 171), "clock_adjtime": (305, 266), "sethostname": (170, 161), "setdomainname": (171, 162),
    "mknod": (133, None), "mknodat": (259, 33), "syslog": (103, 116), "iopl": (172, None), "ioperm": (173, None),
    "modify_ldt": (154, None), "vhangup": (153, 58), "fanotify_init": (300, 262),
}  # fmt: skip
UNKNOWN: dict[str, tuple[int, int | None]] = {"clone3": (435, 435), "openat2": (437, 437)}
"""Their arguments lie in memory, where no filter sees them: libraries then use `clone` and `openat`."""
CLONE, PRLIMIT = (56, 220), (302, 261)
OPEN = (((2, None), 1), ((257, 56), 2))  # open, openat -> which argument has the flags
ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
"""Machine -> its column above, AUDIT_ARCH."""
X32 = 0x40000000  # x86_64: the same calls under other numbers

LOAD, EQUAL, AT_LEAST, ANY_BIT, AND, RETURN = 0x20, 0x15, 0x35, 0x45, 0x54, 0x06
ALLOW, KILL, ERROR = 0x7FFF0000, 0x80000000, 0x00050000
CLONE_THREAD = 0x00010000


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def is_available() -> bool:
    """Whether this kernel has filters, and this machine's numbers of system calls are known."""
    if platform.system() != "Linux" or platform.machine() not in ARCHITECTURES:
        return False
    return bool(ctypes.CDLL(None).prctl(GET_SECCOMP, 0, 0, 0, 0) >= 0)


def restrict() -> None:
    """Deny the calls above to this thread and to all that it starts; there is no way back.

    Raises:
        OSError: the kernel refuses.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    instructions = program(platform.machine())
    code = b"".join(struct.pack("HBBI", *instruction) for instruction in instructions)
    filter_program = _Program(len(instructions), code)
    if libc.prctl(NO_NEW_PRIVS, 1, 0, 0, 0) or libc.prctl(SET_SECCOMP, FILTER, ctypes.byref(filter_program), 0, 0):
        raise OSError(ctypes.get_errno(), f"seccomp: {os.strerror(ctypes.get_errno())}")


def program(machine: str) -> list[tuple[int, int, int, int]]:
    """Return the filter: instructions (code, jump if true, jump if false, operand)."""
    column, architecture = ARCHITECTURES[machine]
    found = [(LOAD, 0, 0, 4), (EQUAL, 1, 0, architecture), (RETURN, 0, 0, KILL), (LOAD, 0, 0, 0)]
    if machine == "x86_64":
        found += [(AT_LEAST, 0, 1, X32), (RETURN, 0, 0, KILL)]
    for calls, error in ((DENIED, errno.EPERM), (UNKNOWN, errno.ENOSYS)):
        for numbers in calls.values():
            if (number := numbers[column]) is not None:
                found += [(EQUAL, 0, 1, number), (RETURN, 0, 0, ERROR | error)]
    denied, allowed = (RETURN, 0, 0, ERROR | errno.EPERM), (RETURN, 0, 0, ALLOW)
    # threads, no processes
    found += [(EQUAL, 0, 4, CLONE[column]), (LOAD, 0, 0, _argument(0)), (ANY_BIT, 1, 0, CLONE_THREAD), denied, allowed]
    # limits of this process, not of another
    found += [(EQUAL, 0, 4, PRLIMIT[column]), (LOAD, 0, 0, _argument(0)), (EQUAL, 1, 0, 0), denied, allowed]
    for numbers, flags in OPEN:  # Landlock before Linux 6.2 lets a file that may be read be emptied as it is opened
        if (number := numbers[column]) is not None:
            emptied = [(AND, 0, 0, os.O_TRUNC | os.O_ACCMODE), (EQUAL, 0, 1, os.O_TRUNC | os.O_RDONLY)]
            found += [(EQUAL, 0, 5, number), (LOAD, 0, 0, _argument(flags)), *emptied, denied, allowed]
    return [*found, allowed]


def _argument(index: int) -> int:
    """Return where the lower half of a call's argument is in `struct seccomp_data` (little-endian)."""
    return 16 + 8 * index
