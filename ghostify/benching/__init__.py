"""Networks timed side by side: by source, from run folders, from exported files."""

from ghostify.benching.bench import bench, bench_sources
from ghostify.benching.result import Bench
from ghostify.benching.sources import Source
from ghostify.benching.writing import write_bench

__all__ = ["Bench", "Source", "bench", "bench_sources", "write_bench"]
