//! Rewrites: changes of weights before compression that keep the function of the network, such as smoothing (a scale moves from the inputs of a
//! site into its weights) and rotation.
//!
//! A *site* is one input and the matrices that read it. [`smoothings`] and [`of_network`] return the rewrites that a recipe names; [`of_sites`],
//! [`without_data`] and [`with_data`] find their changes; [`save`] and [`load`] store these. A *fold* is the change of one tensor.

mod choose;
mod found;
mod stored;

pub(crate) use choose::{of_network, smoothings};
pub(crate) use found::{Search, Windows, of_sites, with_data, without_data};
pub(crate) use stored::{folds_of, load, merged, save};
