//! A network of one site, with its statistics and weights, for tests of rewrites.

use tersor_core::{Context, Error, MatView, Result, Rewrite, RowSource, Seen, SeenSite, Transform, Weights};
use tersor_groupwise::smooth::smoothed;

/// One site, seen on a sample, and the weights of the matrices that read it.
pub struct One<'a> {
    pub seen: SeenSite<'a>,
    pub weights: &'a [MatView<'a, f32>],
}

impl Seen for One<'_> {
    fn each(&self, f: &mut dyn FnMut(&[SeenSite<'_>]) -> Result<()>) -> Result<()> {
        f(std::slice::from_ref(&self.seen))
    }
}

impl Weights for One<'_> {
    fn rows<'w>(&'w self, name: &'w str) -> Result<Box<dyn RowSource + 'w>> {
        let found = self.seen.site.consumers.iter().zip(self.weights).find(|(c, _)| c.weight == name);
        Ok(Box::new(*found.ok_or_else(|| Error::missing(name, "the site"))?.1))
    }
}

/// Returns the factors that a rewrite finds for the site; `None` if it leaves the site unchanged.
pub fn found(how: &dyn Rewrite, one: &One<'_>) -> Result<Option<Vec<f32>>> {
    let (site, name) = (one.seen.site, &one.seen.site.consumers[0].weight);
    let changes = how.rewrite(std::slice::from_ref(site), one, one, &Context::new())?;
    let Some(fold) = changes.folds.iter().find(|f| f.weight == *name) else {
        assert!(changes.folds.is_empty() && changes.online.is_empty());
        return Ok(None);
    };
    let Transform::Scale(factors) = &fold.transform else { panic!("{fold:?}") };
    assert_eq!(format!("{:?}", changes.folds), format!("{:?}", smoothed(site, factors)));
    Ok(Some(factors.clone()))
}
