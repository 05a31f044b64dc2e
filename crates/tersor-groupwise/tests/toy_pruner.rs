//! A pruner defined by a user, and quantizers that honour its mask.

use std::ops::Range;

use tersor_core::*;
use tersor_groupwise::{Dgq, Gptq, Qqq, Rtn};

/// Keeps the half of each row with the larger product of magnitude and root mean square of the input feature.
struct Toy;

impl Pruner for Toy {
    fn name(&self) -> String {
        "toy".into()
    }
    fn needs(&self) -> StatNeeds {
        StatNeeds::none().with_squares()
    }
    fn prepare<'s>(&'s self, stats: &StatSet, _: &Context) -> Result<Box<dyn PreparedPruner + 's>> {
        Ok(Box::new(Ready(stats.require_squares()?)))
    }
}

struct Ready(Vec<f64>);

impl PreparedPruner for Ready {
    fn prune(&self, dense: &dyn RowSource, _: Option<&Pruned>, rows: Range<usize>, _: &Context) -> Result<Pruned> {
        let cols = dense.shape()[1];
        let values = read_finite(dense, rows.clone())?;
        let mut mask = Mask::all([rows.len(), cols])?;
        for (r, row) in values.chunks_exact(cols).enumerate() {
            let score = |c: &usize| f64::from(row[*c]).powi(2) * self.0[*c];
            let mut order: Vec<usize> = (0..cols).collect();
            order.sort_by(|a, b| score(a).total_cmp(&score(b)).then(a.cmp(b)));
            order[..cols / 2].iter().for_each(|c| mask.set(r, *c, false));
        }
        Ok(Pruned { mask, values: None })
    }
}

#[test]
fn quantizers_leave_pruned_weights_at_zero() {
    let (rows, k, tokens) = (96, 64, 400);
    let noise = |i: usize| ((i * 2_654_435_761) % 10_007) as f32 / 5003.5 - 1.0;
    let w: Vec<f32> = (0..rows * k).map(noise).collect();
    // Inputs that share a component, so that columns can make up for each other.
    let x: Vec<f32> =
        (0..tokens * k).map(|i| noise(i + 7) + 2.0 * noise(i / k * 31) * (1.0 + (i % k) as f32 / 64.0)).collect();
    let mut stats = StatSet::new(k, StatNeeds::none().with_gram(), 0, 0).unwrap();
    stats.observe(&MatView::new(&x, [tokens, k]).unwrap()).unwrap();
    let (w, cx) = (MatView::new(&w, [rows, k]).unwrap(), Context::new());
    let pruned = Toy.prepare(&stats, &cx).unwrap().prune(&w, None, 0..rows, &cx).unwrap();
    assert_eq!(pruned.mask.sparsity(), 0.5);
    let masked = Masked::new(&w, &pruned.mask).unwrap();
    let methods: [Box<dyn Method>; 5] = [
        Box::new(Rtn::new().bits(4).group(32).check().unwrap()),
        Box::new(Gptq::new().bits(4).group(32).check().unwrap()),
        Box::new(Gptq::new().bits(3).group(16).act_order(true).check().unwrap()),
        Box::new(Dgq::new().group(32).check().unwrap()),
        Box::new(Qqq::new().group(32).check().unwrap()),
    ];
    let (dense, mut losses) = (w.to_f32(), Vec::new());
    for method in &methods {
        // In two blocks, as large matrices are compressed.
        let prepared = method.prepare(&stats, &cx).unwrap();
        let mut back = Vec::new();
        for block in [0..64, 64..rows] {
            back.extend(prepared.compress(&masked, block, &cx).unwrap().op.decompress().unwrap());
        }
        for (i, v) in back.iter().enumerate() {
            let keeps = pruned.mask.keeps(i / k, i % k);
            assert!(keeps || *v == 0.0, "{}: weight {i} is pruned and came back as {v}", method.name());
        }
        assert!(back.iter().filter(|v| **v != 0.0).count() > rows * k / 3);
        let kept = |i: usize| pruned.mask.keeps(i / k, i % k);
        let error: Vec<f32> = back.iter().enumerate().map(|(i, b)| if kept(i) { dense[i] - b } else { 0.0 }).collect();
        losses.push(tersor_linalg::output_loss(&error, stats.gram().unwrap(), k).unwrap());
    }
    assert!(losses[1] < losses[0] / 2.0, "GPTQ rounds the weights that are left better than to nearest: {losses:?}");
}
