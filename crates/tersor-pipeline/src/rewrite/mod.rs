//! Rewrites: changes of weights before compression that keep the function of the network, such as smoothing (input features are divided by factors,
//! and the columns of the matrices that read them are multiplied by these) and rotation.
//!
//! `smoothings` and `of_network` return the rewrites that a recipe names; `of_sites`, `without_data` and `with_data` compute their changes; `save`
//! and `load` store these. A *site* ([`Site`](tersor_core::Site)) is an input of one or more linear layers with their matrices, a *fold*
//! ([`Fold`](tersor_core::Fold)) the change of one stored weight.

mod choose;
mod found;
mod stored;

pub(crate) use choose::{of_network, smoothings};
pub(crate) use found::{Search, Windows, of_sites, with_data, without_data};
pub(crate) use stored::{folds_of, load, merged, save};
