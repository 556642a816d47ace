#!/usr/bin/env python3
"""Checks the include graph between the folders of src/: allowed edges only, third-party headers only where they belong, no cycle.

    check_includes.py [SRC]        exit 1 and one line per offence"""
import pathlib
import re
import sys

ALLOWED = {  # folder -> folders it may include, besides itself
    "core": set(),
    "io": {"core"},
    "quant": {"core"},
    "comm": {"core"},
    "client": {"core"},
    "backend": {"core", "quant"},
    "model": {"backend", "comm", "core", "io", "quant"},
    "text": {"core", "io"},
    "engine": {"backend", "comm", "core", "io", "model"},
    "bench": {"backend", "client", "core", "engine", "model", "quant"},
    "server": {"core", "engine", "io", "model", "text"},
    "eval": {"client", "core", "engine", "io", "model", "text"},
    "perf": {"core", "engine", "io", "model", "text"},
    "cli": {"backend", "bench", "client", "comm", "core", "engine", "eval", "io", "model", "perf", "quant", "server", "text"},
}
CONFINED = {  # header prefix -> path prefixes that may include it
    "CLI/": ("cli/", "core/options"),
    "toml++/": ("core/options",),
    "spdlog/": ("core/log",),
    "boost/": ("server/http_parser.cpp", "server/listener.cpp", "client/http_client.cpp"),
    "mpi.h": ("comm/mpi.cpp",),
    "hwloc": ("core/topology.cpp",),
    "openssl/": ("server/keys.cpp",),
    "utf8proc": ("text/",),
    "pcre2": ("text/",),
    "editline/": ("cli/",),
    "histedit": ("cli/",),
    "immintrin.h": ("backend/cpu/",),
    "arm_neon.h": ("backend/cpu/",),
}
# Only the backend folder itself may see its implementations: everybody else goes through the factories in backend.h.
HIDDEN = ("backend/cpu/", "backend/cuda/")

root = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else pathlib.Path(__file__).parent.parent / "src")
offences, edges = [], {}
files = sorted(p for p in root.rglob("*") if p.suffix in {".h", ".cpp", ".inl", ".cu", ".cuh"})
for file in files:
    name = file.relative_to(root).as_posix()
    folder = name.split("/")[0]
    if folder not in ALLOWED:
        offences.append(f"{name}: folder {folder} is not in the table of {pathlib.Path(__file__).name}")
        continue
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        own = re.match(r'\s*#\s*include\s+"([^"]+)"', line)
        other = re.match(r"\s*#\s*include\s+<([^>]+)>", line)
        if own:
            target = own.group(1).split("/")[0]
            if "/" in own.group(1) and target != folder:
                edges.setdefault(folder, set()).add(target)
                if target not in ALLOWED[folder]:
                    offences.append(f"{name}:{number}: {folder} may not include {own.group(1)}")
                if own.group(1).startswith(HIDDEN) and folder != "backend":
                    offences.append(f"{name}:{number}: {own.group(1)} is private to backend")
        elif other:
            for prefix, places in CONFINED.items():
                if other.group(1).startswith(prefix) and not name.startswith(places):
                    offences.append(f"{name}:{number}: <{other.group(1)}> belongs to {', '.join(places)}")


def reaches(start, goal, seen):
    return any(n == goal or (n not in seen and reaches(n, goal, seen | {n})) for n in edges.get(start, ()))


offences += [f"{folder} includes itself through other folders" for folder in edges if reaches(folder, folder, {folder})]
print("\n".join(offences) if offences else f"include graph: {len(files)} files, {sum(map(len, edges.values()))} edges, no offence")
sys.exit(bool(offences) or not files)
