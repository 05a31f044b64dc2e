//! Sizes that do not fit together are refused when heads are made.

use std::sync::Arc;

use tersor_core::cache::{Rotary, RotaryScaling};
use tersor_core::{Heads, ParamError};

fn refused<T: std::fmt::Debug>(made: Result<T, ParamError>, name: &str, value: &str) {
    let error = made.unwrap_err();
    assert_eq!((error.name, error.value.as_str()), (name, value), "{error}");
}

#[test]
fn query_heads_must_be_a_multiple_of_key_heads() {
    refused(Heads::new(5, 2, 64), "query_heads", "5");
    refused(Heads::new(2, 4, 64), "query_heads", "2");
    assert_eq!(Heads::new(6, 2, 64).unwrap().group(), 3);
}

#[test]
fn zero_heads_and_dimensions_are_refused() {
    refused(Heads::new(0, 2, 64), "query_heads", "0");
    refused(Heads::new(4, 0, 64), "key_heads", "0");
    refused(Heads::new(4, 2, 0), "head_dim", "0");
    refused(Heads::new(4, 2, 64).unwrap().with_values(0, 64), "value_heads", "0");
    refused(Heads::new(4, 2, 64).unwrap().with_values(2, 0), "value_dim", "0");
}

#[test]
fn heads_that_no_machine_can_address_are_refused() {
    refused(Heads::new(usize::MAX, 1, 2), "head_dim", "2");
    refused(Heads::new(2, 1, usize::MAX), "head_dim", &usize::MAX.to_string());
}

#[test]
fn value_heads_are_a_multiple_of_key_heads_and_divide_query_heads() {
    let heads = || Heads::new(8, 2, 64).unwrap();
    refused(heads().with_values(3, 64), "value_heads", "3");
    refused(heads().with_values(6, 64), "value_heads", "6");
    refused(heads().with_values(1, 64), "value_heads", "1");
    let wide = heads().with_values(4, 32).unwrap();
    assert_eq!((wide.value_heads(), wide.value_dim(), wide.key_heads(), wide.key_dim()), (4, 32, 2, 64));
}

#[test]
fn windows_are_1_to_the_largest_position() {
    let heads = || Heads::new(4, 2, 64).unwrap();
    refused(heads().with_window(0), "window", "0");
    refused(heads().with_window(usize::MAX), "window", &usize::MAX.to_string());
    assert_eq!(heads().with_window(1).unwrap().window(), Some(1));
    assert_eq!(heads().with_window(u32::MAX as usize).unwrap().window(), Some(u32::MAX as usize));
}

#[test]
fn rotary_dimensions_are_even_and_fit_a_head() {
    refused(Rotary::new(0, 10_000.0), "rotary dimensions", "0");
    refused(Rotary::new(15, 10_000.0), "rotary dimensions", "15");
    let rotary = |dims| Arc::new(Rotary::new(dims, 10_000.0).unwrap());
    refused(Heads::new(4, 2, 64).unwrap().with_rotary(rotary(66)), "rotary dimensions", "66");
    assert_eq!(Heads::new(4, 2, 64).unwrap().with_rotary(rotary(16)).unwrap().rotary().unwrap().dims(), 16);
}

#[test]
fn rotary_bases_and_factors_are_finite() {
    refused(Rotary::new(64, 0.0), "rotary base", "0");
    refused(Rotary::new(64, f64::NAN), "rotary base", "NaN");
    let scaled = Rotary::scaled(64, 10_000.0, &RotaryScaling::Linear { factor: 0.0 });
    assert_eq!(scaled.unwrap_err().name, "rotary scaling");
}
