// The axes of the charts in the documents.

/** Rounds up to 1, 2 or 5 times a power of 10. */
export function ceiling(value) {
  if (!(value > 0)) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  return power * [1, 2, 5, 10].find(step => value <= power * step * (1 + 1e-9));
}
