"""Print pip's option for the CPU build of torch: python torch_index.py INDEX.

On Linux, pip's default index has a build with CUDA. What the user has configured for pip comes first. An index that
cannot be reached is left out, and a line on stderr says what that costs.
"""

import subprocess
import sys
import urllib.request


def option(index: str) -> str:
    """Return the option, or nothing where it is not needed, not wanted or of no use."""
    if not sys.platform.startswith("linux"):
        return ""
    configured = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True).stdout
    if "extra-index-url" in configured or "find-links" in configured:
        return ""
    try:
        urllib.request.urlopen(f"{index.rstrip('/')}/torch/", timeout=5).close()
    except (OSError, ValueError) as error:
        print(
            f"{index} cannot be reached ({error}). torch comes from pip's default index: on Linux that is usually the "
            "build with CUDA, a download of 5.7 GB. Another index of CPU builds: make … TORCH_INDEX=ADDRESS.",
            file=sys.stderr,
        )
        return ""
    return f"--extra-index-url {index}"


if __name__ == "__main__":
    print(option(sys.argv[1]))
