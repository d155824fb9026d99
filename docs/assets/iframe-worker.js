/* Search without a server: browsers refuse workers to pages that are read from disk, so there the script of the search
   runs in a hidden frame that behaves like a worker. On pages that a server sends, this does nothing. */
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super()
      this.onmessage = null
      this.frame = document.createElement("iframe")
      this.frame.hidden = true
      document.body.appendChild(this.frame)
      const inside = this.frame.contentWindow
      this.ready = new Promise((resolve, reject) => {
        // What the script says to its parent comes out of this object; scripts it imports load one after the other.
        inside.postMessage = data => this.receive(data)
        inside.importScripts = (...urls) =>
          urls.reduce((before, next) => before.then(() => load(inside, next)), Promise.resolve())
        load(inside, url).then(resolve, reject)
      })
    }
    receive(data) {
      const event = new MessageEvent("message", {data})
      this.dispatchEvent(event)
      if (this.onmessage) this.onmessage(event)
    }
    postMessage(data) {
      this.ready.then(() =>
        this.frame.contentWindow.dispatchEvent(new MessageEvent("message", {data})))
    }
    terminate() {
      this.frame.remove()
    }
  }
  const load = (inside, url) => new Promise((resolve, reject) => {
    const script = inside.document.createElement("script")
    script.src = new URL(url, location.href)
    script.onload = resolve
    script.onerror = reject
    inside.document.body.appendChild(script)
  })
}
