"""Running cells: what a lane starts from, packs of lanes, sweeps of cells."""
