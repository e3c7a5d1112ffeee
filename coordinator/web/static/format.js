// Numbers as people read them.

export const loss = (value) => (value == null ? "–" : value.toFixed(3));

export function count(value) {
  if (value < 10_000) return Math.round(value).toLocaleString("en");
  for (const [size, unit] of [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]]) {
    if (value >= size) return `${(value / size).toPrecision(3)} ${unit}`;
  }
  return String(value);
}

export function bytes(value) {
  if (value < 1000) return `${value} B`;
  const index = Math.min(3, Math.floor(Math.log10(value) / 3) - 1);
  return `${(value / 1000 ** (index + 1)).toPrecision(3)} ${["kB", "MB", "GB", "TB"][index]}`;
}

export function duration(seconds) {
  if (seconds == null) return "–";
  if (seconds < 10) return `${seconds.toFixed(1)} s`;
  if (seconds < 90) return `${Math.round(seconds)} s`;
  const minutes = Math.round(seconds / 60);
  if (minutes < 90) return `${minutes} min`;
  const hours = Math.floor(minutes / 60);
  return hours < 48 ? `${hours} h ${String(minutes % 60).padStart(2, "0")} min` : `${Math.round(hours / 24)} days`;
}

export const percent = (share) => `${Math.round(100 * Math.min(1, Math.max(0, share)))} %`;

// Half-open ranges are shown with their last one included.
export const range = (first, stop) => (stop - first > 1 ? `${first}–${stop - 1}` : `${first}`);
