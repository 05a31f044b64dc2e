//! Subspaces of the inputs that have more bits than the rest (ResQ, Saxena et al. 2024, arXiv 2412.14363): a rotation into the principal directions
//! of what flows in, and a method that compresses runs of columns at widths of their own.

mod basis;
mod method;

pub use basis::{Blocks, basis, principal_rotation};
pub use method::{CheckedSubspaces, Subspaces, widths};
