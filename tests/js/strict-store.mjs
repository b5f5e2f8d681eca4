// An S3 store in memory that is as strict as Ceph and others: it refuses checksums and trailers,
// decodes copy sources as Amazon does, and has access keys for only bundles and their former
// generations.
import { createHash } from 'node:crypto';
import { createServer } from 'node:http';
import { atEnd } from './relay.mjs';
import { KEYS } from './store.mjs';

const [KEY] = KEYS.match(/(?<=key_id = ).*/);
const xml = (name, inner) => `<?xml version="1.0" encoding="UTF-8"?><${name}>${inner}</${name}>`;
const escaped = text => text.replaceAll('&', '&amp;').replaceAll('<', '&lt;');

export class StrictStore {
  /** A store whose access keys are limited to keys below `prefix`. */
  static async start(t, prefix) {
    const store = new StrictStore();
    Object.assign(store, { prefix, objects: new Map(), uploads: new Map() });
    const server = createServer((request, response) => store.serve(request, response));
    await new Promise(resolve => server.listen(0, '127.0.0.1', resolve));
    atEnd(t, () => { server.closeAllConnections(); server.close(); });
    store.port = server.address().port;
    return store;
  }

  config(more = {}) {
    return {
      store: '"s3"', bucket: '"bundles"', region: '"us-east-1"', prefix: `"${this.prefix}"`, path_style: 'true',
      endpoint_url: `"http://127.0.0.1:${this.port}"`, timeout: '"2s"', ...more,
    };
  }

  /** The names of the objects below a folder. */
  list(below) {
    return [...this.objects.keys()].filter(key => key.startsWith(below)).map(key => key.slice(below.length));
  }

  async serve(request, response) {
    const chunks = [];
    for await (const chunk of request) chunks.push(chunk);
    const [status, headers, body] = this.answer(request, Buffer.concat(chunks));
    response.writeHead(status, headers);
    response.end(request.method === 'HEAD' ? undefined : body);
  }

  answer({ method, url, headers }, body) {
    const at = new URL(url, 'http://store');
    const key = decodeURIComponent(at.pathname).replace(/^\/bundles\/?/, '');
    const query = name => at.searchParams.get(name);
    const error = (status, code) => [status, { 'content-type': 'application/xml' }, xml('Error', `<Code>${code}</Code>`)];
    const found = (name, inner) => [200, { 'content-type': 'application/xml' }, xml(name, inner)];

    if (!headers.authorization?.includes(`Credential=${KEY}/`)) return error(403, 'InvalidAccessKeyId');
    const unknown = Object.keys(headers).filter(name => /^x-amz-(checksum-(?!mode)|sdk-checksum|trailer)/.test(name));
    if (unknown.length || /aws-chunked/.test(headers['content-encoding']) || /^STREAMING/.test(headers['x-amz-content-sha256'])) {
      return error(400, 'InvalidRequest');
    }
    const isOurs = ['bundles/', 'former/'].some(folder => key.startsWith(this.prefix + folder));
    if (key && !isOurs) return error(403, 'AccessDenied');

    if (method === 'GET' && at.searchParams.has('uploads')) return found('ListMultipartUploadsResult', '');
    if (method === 'GET' && query('list-type')) {
      const contents = [...this.objects].filter(([key]) => key.startsWith(query('prefix')));
      return found('ListBucketResult', contents.map(([key, { etag, time }]) =>
        `<Contents><Key>${escaped(key)}</Key><ETag>${escaped(etag)}</ETag><LastModified>${time}</LastModified></Contents>`).join(''));
    }
    if (!key) return [200, {}];
    const object = this.objects.get(key);
    if (method === 'GET' || method === 'HEAD') {
      if (!object) return error(404, method === 'GET' ? 'NoSuchKey' : 'NotFound');
      return [200, { ...object.meta, etag: object.etag, 'content-length': object.body.length }, object.body];
    }
    if (method === 'DELETE') {
      if (query('uploadId')) this.uploads.delete(query('uploadId'));
      else this.objects.delete(key);
      return [204, {}];
    }
    if (at.searchParams.has('uploads')) {
      const id = String(this.uploads.size + 1);
      this.uploads.set(id, { parts: [], headers });
      return found('InitiateMultipartUploadResult', `<UploadId>${id}</UploadId>`);
    }
    if (query('partNumber')) {
      this.uploads.get(query('uploadId')).parts[query('partNumber')] = body;
      return [200, { etag: '"part"' }];
    }
    if (headers['if-none-match'] && object) return error(412, 'PreconditionFailed');
    if (headers['if-match'] && headers['if-match'] !== object?.etag) return error(412, 'PreconditionFailed');
    if (headers['x-amz-copy-source']) {
      const source = decodeURIComponent(headers['x-amz-copy-source'].replaceAll('+', ' ')).replace(/^\/?bundles\//, '');
      const copied = this.objects.get(source);
      if (!copied) return error(404, 'NoSuchKey');
      this.objects.set(key, { ...copied, time: new Date().toISOString() });
      return found('CopyObjectResult', `<ETag>${escaped(copied.etag)}</ETag>`);
    }
    if (query('uploadId')) {
      const { parts, headers } = this.uploads.get(query('uploadId'));
      return found('CompleteMultipartUploadResult', `<ETag>${escaped(this.put(key, headers, Buffer.concat(parts.filter(Boolean))))}</ETag>`);
    }
    return [200, { etag: this.put(key, headers, body) }];
  }

  put(key, headers, body) {
    const meta = Object.fromEntries(Object.entries(headers).filter(([name]) => name.startsWith('x-amz-meta-')));
    const etag = `"${createHash('md5').update(body).digest('hex')}"`;
    this.objects.set(key, { body, etag, meta, time: new Date().toISOString() });
    return etag;
  }
}
