//! Nothing here: the measurements are under `benches/`.
