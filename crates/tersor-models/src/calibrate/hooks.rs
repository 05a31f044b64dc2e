//! What the caller of a calibration provides, and what it is shown: [`Hooks`], [`SiteChanges`] and [`ObservedSite`].

use std::sync::Arc;

use tersor_core::rewrite::{MakesKeysAndValues, ModuleOutput};
use tersor_core::{Cancel, Fold, InputChange, LinearOp, Method, Result, SeenSite, Site, StatNeeds, StatSet};

/// Which form of the earlier matrices computes the calibration inputs of a [site](Site) (an input of the network with the linear layers
/// that read it): the operators that replace them after compression, or the matrices before compression. There is no default.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Upstream {
    /// Earlier matrices are the compressed ones, so that each site's compression can compensate for the errors before it (sequential
    /// calibration).
    Compressed,
    /// The matrices of earlier layers are the compressed ones, those of the site's own layer the original ones: all sites of a layer are
    /// observed in one pass (as the reference code of Wanda and SparseGPT does).
    CompressedLayers,
    /// Earlier matrices are the original ones, so that the inputs of a site do not depend on how others are compressed.
    Original,
}

/// For each matrix of a site (an input of the network with the linear layers that read it), in the order of [`Site::consumers`], the
/// operator that replaces it after compression, of the same shape `[out_features, in_features]`; None for a matrix that stays as it is. A
/// shorter list leaves the remaining matrices as they are; entries beyond the last matrix are ignored. `Calibration::layer` errors if it
/// uses the list (not with [`Upstream::Original`]) and an operator has another shape than its matrix.
pub type Replacements = Vec<Option<Arc<dyn LinearOp>>>;

/// Callback that reads one row of an embedding table: it receives the table's tensor name and the row's index, counted from 0, and fills
/// the buffer `[hidden]`. The function that calls it returns its error.
pub type ReadRow<'r> = &'r mut dyn FnMut(&str, usize, &mut [f32]) -> Result<()>;

/// Settings and callbacks of `Calibration::layer`. If a callback errors, that function stops and returns the error. A site is an input of
/// the layer together with the linear layers that read it, such as q, k and v.
pub struct Hooks<'h> {
    /// Whether the hidden states continue through the operators that the callback [`Hooks::compress`] returns for the layer's matrices
    /// ([`Upstream::Compressed`] and [`Upstream::CompressedLayers`]), or through the original matrices.
    pub upstream: Upstream,
    /// Cancellation of calibration, checked before each batch of windows; a cancelled call errors.
    pub cancel: &'h Cancel,
    /// Seed of the random token samples in the statistics; equal seeds choose equal tokens.
    pub seed: u64,
    /// Returns the statistics that the callback [`Hooks::compress`] needs of the inputs of a [site](Site) (an input of the layer with the
    /// linear layers that read it), such as the Gram matrix; [`StatNeeds::none`] for a site that needs no data or whose matrices are
    /// already compressed. [`StatNeeds::windows`] must be false, otherwise `Calibration::layer` errors.
    pub needs: &'h dyn Fn(&Site) -> StatNeeds,
    /// Returns the change (scales, permutation or rotation) that the compressed network applies at run time to the inputs of a [site](Site)
    /// before the site's matrices multiply them; None for no change. The callback [`Hooks::compress`] receives the statistics of the
    /// changed inputs, but the operators that it returns take the unchanged inputs. The hidden states are not affected. An error stops
    /// `Calibration::layer`, which returns it.
    pub change: &'h dyn Fn(&Site) -> Result<Option<InputChange>>,
    /// Compresses the matrices of a [site](Site) (the linear layers that read one input) from the statistics of this input, and returns the
    /// operators that replace them ([`Replacements`]). Called once for every site of the layer, in the order of execution, also for sites
    /// without statistics. The result is not used with [`Upstream::Original`]. An error stops `Calibration::layer`, which returns it.
    pub compress: &'h mut dyn FnMut(&Site, &StatSet) -> Result<Replacements>,
    /// Callbacks that change the layer's weights before its [sites](Site) (inputs of the layer with the linear layers that read them) are
    /// compressed: [`SiteChanges::rewrite`] returns the changes, such as the scales of smoothing. None to compress the weights without such
    /// changes.
    pub rewriting: Option<SiteChanges<'h>>,
    /// [Folds](Fold) (changes of stored weights, such as scaled, rotated or permuted rows or columns) to apply to the layer's weights when
    /// they are read. Folds of tensors outside of the layer have no effect. `Calibration::layer` appends the folds that the callback
    /// [`SiteChanges::rewrite`] in [`Hooks::rewriting`] returns.
    pub folds: Vec<Fold>,
}

/// Callbacks that rewrite the weights of a layer before its [sites](Site) (inputs of the layer with the linear layers that read them) are
/// compressed, as smoothing and rotations do.
pub struct SiteChanges<'h> {
    /// Returns the statistics that the callback [`SiteChanges::rewrite`] needs of the inputs of a [site](Site) (an input of the layer with
    /// the linear layers that read it). [`StatNeeds::sample`] is the number of tokens whose inputs are wanted in [`ObservedSite::sample`];
    /// a site that requests 0 gets an empty sample. All other sites get the inputs of the same windows: the first windows that together
    /// have at most as many tokens as the largest request of a site of the layer, but at least one window. [`StatNeeds::windows`] must be
    /// false, otherwise `Calibration::layer` errors.
    pub needs: &'h dyn Fn(&Site) -> StatNeeds,
    /// Computes the changes of the weights of one layer. Receives one [`ObservedSite`] for each of the layer's four sites (inputs with the
    /// linear layers that read them: q, k and v; o; gate and up; down), in the order of execution. Returns [folds](Fold): each multiplies,
    /// permutes, rotates or replaces the rows or columns of one stored weight, by its tensor name. `Calibration::layer` calls this once,
    /// before it compresses anything, appends the folds to [`Hooks::folds`] and applies them when it reads the layer's weights again. An
    /// error stops that function, which returns it.
    pub rewrite: &'h mut dyn FnMut(&[ObservedSite<'_>]) -> Result<Vec<Fold>>,
}

/// A [site](Site) of a layer (an input with the linear layers that read it, such as q, k and v) with the calibration data that a rewrite of
/// the layer's weights needs: statistics and samples of the input, and functions that compute the output of the site's module (its matrices
/// and what follows up to the next site) from such a sample.
pub struct ObservedSite<'s> {
    /// The site whose inputs were observed: its name, its features, the matrices that read it, and what produces it.
    pub site: &'s Site,
    /// Statistics of the site's inputs over all calibration windows: those that [`SiteChanges::needs`] requests, without the sample, which
    /// is in `sample`.
    pub stats: StatSet,
    /// Inputs of the site for all tokens of the first calibration windows, `[tokens, features]`, row-major, one whole window after the
    /// other. The windows are the same for each site of the layer: as many as together have at most the largest number of tokens that
    /// [`SiteChanges::needs`] requests for a site of the layer, but at least one. Empty if [`SiteChanges::needs`] requests no sample of
    /// this site.
    pub sample: Vec<f32>,
    /// Computes the output of the site's module (its matrices and what follows up to the next site) with other matrices. The first argument
    /// has inputs of the site, `[tokens, features]` row-major, for all tokens of the sampled windows: the first calibration windows that
    /// together have at most the largest number of tokens that [`SiteChanges::needs`] requests for a site of the layer, but at least one
    /// window. The second has one operator for each matrix of the site, in the order of [`Site::consumers`]; the layer's biases are kept.
    /// The third is a flag.
    ///
    /// Without the flag, returns, row-major: for q, k and v the attention output, `[tokens, heads * head_dim]`; for gate and up the gated
    /// product, `[tokens, intermediate]` (in an encoder, the output of the activation function); for o and down the product,
    /// `[tokens, hidden]`. With the flag, the first two also pass through the layer's own matrix that follows (o, down) with its bias,
    /// which gives `[tokens, hidden]`; the flag changes nothing for o and down.
    ///
    /// Errors if the first argument is not `[tokens, features]` for these tokens, if the number of operators is not that of the site's
    /// matrices, if an operator has another shape than the matrix that it stands for, or if an input is not finite. See [`ModuleOutput`].
    pub output: Box<ModuleOutput<'s>>,
    /// Computes the keys and values that the layer would cache for other inputs of the site. The argument has inputs `[tokens, features]`,
    /// row-major, for all tokens of the sampled windows: the first calibration windows that together have at most the largest number of
    /// tokens that [`SiteChanges::needs`] requests for a site of the layer, but at least one window. Returns keys and values,
    /// `[tokens, kv_heads * head_dim]` each, by the layer's own matrices: keys after the norm of each head, if the model has one, and after
    /// rotary embedding, with positions counted from 0 in each window. Returns None unless the site is the input of q, k and v of a
    /// decoder. Errors if the inputs have another length or are not finite. See [`MakesKeysAndValues`].
    pub keys_and_values: Box<MakesKeysAndValues<'s>>,
}

impl ObservedSite<'_> {
    /// Returns this site as a [`SeenSite`], the argument of a [`Rewrite`](tersor_core::Rewrite) (a change of weights before compression),
    /// with references to its data. `plain` has one entry for each of [`Site::consumers`], in order: a data-free compression method
    /// (round-to-nearest, for example) with the grid that the matrix will be quantized to, or None if there is no such method. Only the
    /// searches of AWQ and QQQ use `plain`: they error if the entry of a matrix is None or missing, and ignore entries beyond the last
    /// matrix. For other rewrites, `plain` may be empty.
    pub fn as_site<'a>(&'a self, plain: &'a [Option<&'a dyn Method>]) -> SeenSite<'a> {
        SeenSite {
            site: self.site,
            stats: &self.stats,
            sample: &self.sample,
            output: &*self.output,
            keys_and_values: &*self.keys_and_values,
            plain,
        }
    }
}
