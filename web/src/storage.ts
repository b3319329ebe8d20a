/** What the browser keeps for this address: for the tab, or for good.  In a frame of another site
 * (a notebook) browsers may refuse; then it is kept while the page is open. */

function kept(of: () => Storage): Pick<Storage, "getItem" | "setItem"> {
  try {
    return of();
  } catch {
    const memory = new Map<string, string>();
    return {
      getItem: (key) => memory.get(key) ?? null,
      setItem: (key, value) => void memory.set(key, value),
    };
  }
}

export const forTab = kept(() => sessionStorage);
export const forGood = kept(() => localStorage);
