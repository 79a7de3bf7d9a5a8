// The look of a mode: one colour and one symbol, the same in every view and in every run.

const GREY = "--series-6";
const COLOURS = ["--series-1", "--series-2", "--series-3", "--series-4", "--series-5", "--series-7", "--series-8"];
export const SYMBOLS = ["circle", "square", "diamond", "triangle-up", "star", "cross", "x", "hexagon"];

// Those that stand beside each other most often come first and differ in both. New ones go to the end: a place
// in this list is a look.
const KNOWN = [
  "bon", "vbon", "auto", "live", "bond", "wind", "kl-rl", "dpo", "bon-sft", "adaptive-bon", "treebon",
  "speculative-rejection", "soft-bon", "bon-uniform-top", "pessimistic-bon", "rbon-kl", "rbon-length", "mbr-bon",
  "srbon-kl", "srbon-wd", "self-certainty", "majority-of-the-bests", "best-of-poisson", "corrected-bon",
];

/** Colour variable and symbol of a mode or of a variant such as `bon (N=16)`. */
export function styleOf(variant) {
  const mode = modeOf(variant);
  if (mode === "ref") return { series: GREY, symbol: "circle" };
  const known = KNOWN.indexOf(mode);
  const place = known >= 0 ? known : KNOWN.length + hashed(mode);
  return { series: COLOURS[place % COLOURS.length], symbol: SYMBOLS[(place + Math.floor(place / COLOURS.length)) % SYMBOLS.length] };
}

/** The looks of several variants at once: those of one mode share its colour and differ in their symbols. */
export function looksOf(variants) {
  const seen = new Map();
  return new Map(
    [...new Set(variants)].map((variant) => {
      const { series, symbol } = styleOf(variant);
      const before = seen.get(modeOf(variant)) ?? 0;
      seen.set(modeOf(variant), before + 1);
      return [variant, { series, symbol: SYMBOLS[(SYMBOLS.indexOf(symbol) + 3 * before) % SYMBOLS.length] }];
    }),
  );
}

/** The mode of a variant, without its N. */
export function modeOf(variant) {
  return variant.replace(/ \(N=\d+\)$/, "");
}

function hashed(text) {
  let sum = 0;
  for (const letter of text) sum = (sum * 31 + letter.codePointAt(0)) % 9973;
  return sum % 56;
}
