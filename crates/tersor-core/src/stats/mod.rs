//! Statistics of the inputs of sites, as values that add.

mod access;
mod channel;
mod file;
mod gram;
pub mod little_endian;
mod needs;
mod sample;
mod set;
mod weights;
mod windows;

pub use channel::ChannelStats;
pub use file::StatExtent;
pub use needs::StatNeeds;
pub use set::StatSet;
pub use windows::WindowStats;

#[cfg(test)]
mod tests;
