"""The paper's Table 1 at small scale, from nothing and without a download: `dco-trl demo`."""
