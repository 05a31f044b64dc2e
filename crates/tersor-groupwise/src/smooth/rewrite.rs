//! Smoothing as a [`Rewrite`](tersor_core::Rewrite): [`Factors`] chooses a factor for each feature, the rest is the same for all choices.

use tersor_core::{
    Changes, ChannelStats, Context, Effect, Fold, Folding, InputChange, Producer, Result, RowSource, SeenSite, Side,
    Site, StatNeeds, Transform, bias_name, check_finite,
};
use tersor_operators::online_layout;

/// A choice of smoothing factors.
pub(crate) trait Factors: Send + Sync {
    /// The name of the rewrite in reports.
    const NAME: &'static str;
    /// Returns the statistics of the inputs that the choice needs.
    fn needs(&self) -> StatNeeds;
    /// Returns whether the choice applies to `site`.
    fn covers(&self, site: &Site) -> bool;
    /// Returns finite, positive factors `[features]` for the inputs of a site, or `None` to leave the site unchanged. `weights` are those of the
    /// site's consumers, in order.
    fn factors(&self, seen: &SeenSite<'_>, weights: &[&dyn RowSource], cx: &Context) -> Result<Option<Vec<f32>>>;
}

/// Returns the largest magnitude of each channel, `[features]`.
pub(crate) fn largest_magnitudes(c: &ChannelStats) -> Vec<f32> {
    c.min.iter().zip(&c.max).map(|(lo, hi)| hi.abs().max(lo.abs())).collect()
}

/// Returns the names of all tensors that the choice `how` may change in `sites`, each with its kind of change. Errors if a layout overflows.
pub(crate) fn plan(how: &impl Factors, sites: &[Site]) -> Result<Vec<(String, Effect)>> {
    let mut effects = Vec::new();
    for site in sites.iter().filter(|s| how.covers(s)) {
        let effect = match site.folding() {
            Folding::Online => Effect::Online(online_layout(&InputChange::Scale(Vec::new()), site.features)?),
            _ => Effect::Values,
        };
        effects.extend(site.consumers.iter().map(|c| (c.weight.clone(), effect.clone())));
        match &site.producer {
            Producer::Norm { weight } => effects.push((weight.clone(), Effect::Values)),
            Producer::Linear { weight, .. } => {
                effects.push((weight.clone(), Effect::Values));
                effects.extend(bias_name(weight).map(|b| (b, Effect::Values)));
            }
            Producer::Opaque => {}
        }
    }
    Ok(effects)
}

/// Returns the folds of all sites that `how` covers. Errors if the choice fails or a factor is not finite, naming the site.
pub(crate) fn rewrite(
    how: &impl Factors,
    weights: &dyn tersor_core::Weights,
    seen: &dyn tersor_core::Seen,
    cx: &Context,
) -> Result<Changes> {
    let mut changes = Changes::default();
    seen.each(&mut |sites| {
        for s in sites.iter().filter(|s| how.covers(s.site)) {
            let rows = s.site.consumers.iter().map(|c| weights.rows(&c.weight)).collect::<Result<Vec<_>>>()?;
            let rows: Vec<&dyn RowSource> = rows.iter().map(|r| &**r).collect();
            let own = s.stats.require_features(s.site.features);
            let found = own.and_then(|()| how.factors(s, &rows, cx)).and_then(|f| {
                f.iter().try_for_each(|f| check_finite(f, f.len(), 0))?;
                Ok(f)
            });
            let found = found.map_err(|e| e.in_tensor(&s.site.name))?;
            if s.site.folding() == Folding::Online {
                // The plan holds a tensor of factors for every such site: without a choice they are 1.
                let factors = found.unwrap_or_else(|| vec![1.0; s.site.features]);
                changes.online.extend(smoothed(s.site, &factors));
            } else {
                changes.folds.extend(found.iter().flat_map(|factors| smoothed(s.site, factors)));
            }
        }
        Ok(())
    })?;
    Ok(changes)
}

/// Returns the changes of stored weights ([`Fold`]s, here multiplications of the columns or rows of a weight by factors) that divide the
/// inputs of `site` by `factors`, `[features]`, without changing the network's output. The columns of the matrices that read the inputs are
/// multiplied by the factors. What produces the inputs is divided by the factors: a norm, or the rows and the bias of a matrix. The change
/// of the bias is returned even if the matrix has none. With [`Producer::Opaque`] (a producer that takes no factors) only the columns are
/// changed, and the caller must divide the inputs when the network runs.
///
/// This function never errors. If the number of factors is not the number of features, applying the changes errors later. A factor of 0
/// makes the changed weights of the producer infinite or NaN.
pub fn smoothed(site: &Site, factors: &[f32]) -> Vec<Fold> {
    let fold = |weight: String, side, factors: Vec<f32>| Fold { weight, side, transform: Transform::Scale(factors) };
    let inverse: Vec<f32> = factors.iter().map(|s| s.recip()).collect();
    let read = |c: &tersor_core::Consumer| fold(c.weight.clone(), Side::Input, factors.to_vec());
    let mut folds: Vec<Fold> = site.consumers.iter().map(read).collect();
    match &site.producer {
        // The weight of a norm is a matrix of one row.
        Producer::Norm { weight } => folds.push(fold(weight.clone(), Side::Input, inverse)),
        Producer::Linear { weight, .. } => {
            folds.extend(bias_name(weight).map(|b| fold(b, Side::Input, inverse.clone())));
            folds.push(fold(weight.clone(), Side::Output, inverse));
        }
        Producer::Opaque => {}
    }
    folds
}

/// Implements [`Rewrite`] for types that implement [`Factors`].
macro_rules! smoothings {
    ($($how:ty),*) => {$(
        impl tersor_core::Rewrite for $how {
            fn name(&self) -> String {
                <Self as Factors>::NAME.into()
            }
            fn scope(&self) -> tersor_core::Scope {
                tersor_core::Scope::Site
            }
            fn needs(&self, site: &Site) -> StatNeeds {
                if self.covers(site) { Factors::needs(self) } else { StatNeeds::default() }
            }
            fn plan(&self, sites: &[Site]) -> Result<Vec<(String, Effect)>> {
                plan(self, sites)
            }
            fn rewrite(
                &self,
                _: &[Site],
                weights: &dyn tersor_core::Weights,
                seen: &dyn tersor_core::Seen,
                cx: &Context,
            ) -> Result<Changes> {
                rewrite(self, weights, seen, cx)
            }
        }
    )*};
}
smoothings!(super::CheckedSmoothQuant, super::Percentile, super::Adaptive, crate::Awq);
