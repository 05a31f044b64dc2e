//! Spans of columns with methods of their own: more bits for the principal directions of the inputs (ResQ, Saxena et al., arXiv 2412.14363).

mod algorithm;
mod method;
mod params;

pub use params::{CheckedSubspaces, Subspaces, widths};
