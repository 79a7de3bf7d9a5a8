// Starts Swagger UI on this server's own description; a key entered on the page at / is used here too.

const KEY = sessionStorage.getItem("vbon-key");

async function start() {
  const response = await fetch("openapi.json", { headers: KEY ? { authorization: `Bearer ${KEY}` } : {} });
  const spec = await response.json();
  // The service's own address: a proxy may serve it below a path.
  spec.servers = [{ url: new URL(".", location.href).pathname.replace(/\/$/, "") || "/" }];
  SwaggerUIBundle({
    spec,
    dom_id: "#docs",
    deepLinking: true,
    presets: [SwaggerUIBundle.presets.apis],
    requestInterceptor: (request) => {
      if (KEY) request.headers.authorization = `Bearer ${KEY}`;
      return request;
    },
  });
}

start();
