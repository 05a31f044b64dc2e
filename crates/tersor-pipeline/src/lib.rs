//! Compression of whole models.

pub mod recipe;
