//! MXINT: sixteen weights share a scale that is a power of two.

use tersor_groupwise::{DType, Exec, LinearOp, MatView, Rtn};

#[test]
fn a_known_block() {
    let golden: serde_json::Value = serde_json::from_str(include_str!("golden/mxint_small.json")).unwrap();
    let floats = |v: &serde_json::Value| -> Vec<f32> {
        v.as_array().unwrap().iter().map(|v| v.as_f64().unwrap() as f32).collect()
    };
    let x = floats(&golden["input"]);
    for bits in [4u32, 8] {
        let want = &golden[format!("mxint{bits}")];
        let op = Rtn::mxint(bits).quantize(&MatView::new(&x, [1, 16]).unwrap()).unwrap().0;
        let mut back = [0f32; 16];
        op.decompress_rows(0..1, &mut back, &Exec::new()).unwrap();
        assert_eq!(back[..], floats(&want["dequant"])[..]);
        let codes: Vec<f32> =
            op.row_codes(0).unwrap().iter().map(|c| f32::from(*c) - 2f32.powi(bits as i32 - 1)).collect();
        assert_eq!(codes, floats(&want["codes"]));
        let exponent = want["exp"].as_i64().unwrap() as i32;
        assert_eq!(op.scales(), [2f32.powi(exponent - bits as i32 + 1)]);
        assert_eq!(op.storage_bits(), 16 * u64::from(bits) + 8);
    }
}

#[test]
fn powers_of_two_saturate_and_zeros_stay() {
    let mut x = [0f32; 35];
    (x[0], x[17]) = (1.0, -0.0);
    let op = Rtn::mxint(4).quantize(&MatView::new(&x, [1, 35]).unwrap()).unwrap().0;
    let mut back = [9f32; 35];
    op.decompress_rows(0..1, &mut back, &Exec::new()).unwrap();
    assert_eq!(back[0], 0.875);
    assert!(back[1..].iter().all(|v| *v == 0.0));
    assert_eq!(op.group_spec().scale_dtype(), DType::E8M0);
}

#[test]
fn saved_and_multiplied() {
    use tersor_groupwise::{Input, MatViewMut, MemTensors, Write};
    let w: Vec<f32> = (0..50 * 90).map(|i| (i as f32 * 0.77).sin() * if i % 90 < 30 { 40.0 } else { 0.01 }).collect();
    let op = Rtn::mxint(8).quantize(&MatView::new(&w, [50, 90]).unwrap()).unwrap().0;
    let mut file = MemTensors::new();
    op.save("w", &mut file).unwrap();
    assert_eq!(op.storage_bits(), 8 * file.bytes() as u64);
    let registry = tersor_groupwise::registry();
    let again = registry.load(&op.spec(), "w", &file).unwrap();
    let (mut a, mut b) = (vec![0f32; w.len()], vec![0f32; w.len()]);
    op.decompress_rows(0..50, &mut a, &Exec::new()).unwrap();
    again.decompress_rows(0..50, &mut b, &Exec::new()).unwrap();
    assert!(a == b && w.iter().zip(&a).all(|(w, a)| (w - a).abs() <= 0.5 * 64.0 / 128.0));
    let x: Vec<f32> = (0..180).map(|i| (i as f32 * 0.3).cos()).collect();
    let mut y = vec![0f32; 100];
    again
        .apply(&Input::new(&x, [2, 90]).unwrap(), MatViewMut::new(&mut y, [2, 50]).unwrap(), Write::Set, &Exec::new())
        .unwrap();
    for (t, y) in y.chunks(50).enumerate() {
        for (r, y) in y.iter().enumerate() {
            let want: f64 = (0..90).map(|k| f64::from(x[t * 90 + k]) * f64::from(a[r * 90 + k])).sum();
            assert!((f64::from(*y) - want).abs() < 1e-3 * (1.0 + want.abs()), "{y} {want}");
        }
    }
}
