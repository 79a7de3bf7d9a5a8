{{/* The name of every object, short enough for what Kubernetes and KubeRay append to it: KubeRay cuts the front off
NAME-serve-svc where it has more than 50 characters, and clients would ask for a service that is not there. */}}
{{- define "vbon.fullname" -}}
{{- $most := ternary 40 52 .Values.fleet.enabled -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- $full := ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) -}}
{{- $full = default $full .Values.fullnameOverride | replace "." "-" -}}
{{- if regexMatch "^[0-9]" $full -}}
{{- $full = printf "v%s" $full -}}
{{- end -}}
{{- regexReplaceAll "-+$" (trunc $most $full) "" -}}
{{- end -}}

{{- define "vbon.selectorLabels" -}}
app.kubernetes.io/name: {{ default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" | quote }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end -}}

{{- define "vbon.labels" -}}
{{ include "vbon.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service | quote }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | quote }}
{{- with .Values.labels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "vbon.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}
{{ printf "%s@%s" .repository .digest }}
{{- else -}}
{{ printf "%s:%s" .repository (default $.Chart.AppVersion .tag) }}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "vbon.serviceAccountName" -}}
{{- if .Values.serviceAccount.name -}}
{{ .Values.serviceAccount.name }}
{{- else -}}
{{ ternary (include "vbon.fullname" .) "default" .Values.serviceAccount.create }}
{{- end -}}
{{- end -}}

{{/* The claim that holds the models, or nothing. */}}
{{- define "vbon.modelsClaim" -}}
{{- with .Values.models -}}
{{- if .existingClaim -}}
{{ .existingClaim }}
{{- else if .create.enabled -}}
{{ include "vbon.fullname" $ }}-models
{{- end -}}
{{- end -}}
{{- end -}}

{{/* The settings of the service. It serves under the names of its Service, and those that are configured. */}}
{{- define "vbon.settings" -}}
{{- $service := printf "%s%s" (include "vbon.fullname" .) (ternary "-serve-svc" "" .Values.fleet.enabled) -}}
{{- $own := list $service (printf "%s.%s" $service .Release.Namespace) (printf "%s.%s.svc" $service .Release.Namespace) (printf "%s.%s.svc.cluster.local" $service .Release.Namespace) -}}
{{- $hosts := concat (default list .Values.settings.hosts) $own .Values.service.hosts | uniq -}}
{{- mergeOverwrite (deepCopy .Values.settings) (dict "hosts" $hosts) | toJson -}}
{{- end -}}

{{/* The settings as TOML. Helm writes every number in TOML as a float, and 5.0 is not 5 to vLLM. So each value of a
setting that takes any names is written as the JSON text that the service reads there. */}}
{{- define "vbon.settingsToml" -}}
{{- $settings := include "vbon.settings" . | fromJson -}}
{{- range $group, $name := dict "engine" "args" "tuned" "settings" -}}
{{- $found := dig $group $name nil $settings -}}
{{- if kindIs "map" $found -}}
{{- range $key, $value := $found -}}
{{- $_ := set $found $key (toJson $value) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- toToml $settings -}}
{{- end -}}

{{/* Seconds that requests may go on after SIGTERM: limits.drain_s, whose default is 30. */}}
{{- define "vbon.graceSeconds" -}}
{{- $drain := dig "limits" "drain_s" 30 .Values.settings -}}
{{- add .Values.shutdown.preStopSeconds (ceil $drain | int64) .Values.shutdown.marginSeconds -}}
{{- end -}}

{{- define "vbon.podSecurityContext" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "vbon.securityContext" -}}
readOnlyRootFilesystem: true
allowPrivilegeEscalation: false
capabilities: {drop: [ALL]}
{{- end -}}

{{/* Environment that the plain service and the pods of a fleet have in common. */}}
{{- define "vbon.env" -}}
- name: VBON_HOST
  value: {{ .Values.listen | quote }}
- name: VBON_STORE
{{- if .Values.secrets.store.name }}
  valueFrom:
    secretKeyRef: {{ dict "name" .Values.secrets.store.name "key" .Values.secrets.store.key | toJson }}
{{- else }}
  value: none
{{- end }}
{{- if .Values.secrets.keys.name }}
- name: VBON_AUTH__KEYS_FILE
  value: {{ printf "/etc/vbon-keys/%s" .Values.secrets.keys.key | quote }}
{{- end }}
{{- if .Values.secrets.huggingFace.name }}
- name: HF_TOKEN
  valueFrom:
    secretKeyRef: {{ dict "name" .Values.secrets.huggingFace.name "key" .Values.secrets.huggingFace.key | toJson }}
{{- end }}
# FlashInfer's sampler is compiled by nvcc on first use, which the image does not have.
- name: VLLM_USE_FLASHINFER_SAMPLER
  value: "0"
{{- with .Values.env }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "vbon.volumeMounts" -}}
- {name: tmp, mountPath: /tmp}
- {name: shm, mountPath: /dev/shm}
- {name: home, mountPath: /home/vbon}
{{- if include "vbon.modelsClaim" . }}
- name: models
  mountPath: {{ .Values.models.mountPath | quote }}
  readOnly: true
{{- end }}
{{- if .Values.secrets.keys.name }}
- {name: keys, mountPath: /etc/vbon-keys, readOnly: true}
{{- end }}
{{- end -}}

{{- define "vbon.volumes" -}}
- name: tmp
  emptyDir:
    sizeLimit: {{ .Values.temporary.sizeLimit | quote }}
- name: shm
  emptyDir:
    medium: Memory
    sizeLimit: {{ .Values.sharedMemory.sizeLimit | quote }}
- name: home
{{- if .Values.home.existingClaim }}
  persistentVolumeClaim:
    claimName: {{ .Values.home.existingClaim | quote }}
{{- else }}
  emptyDir:
    sizeLimit: {{ .Values.home.sizeLimit | quote }}
{{- end }}
{{- with include "vbon.modelsClaim" . }}
- name: models
  persistentVolumeClaim:
    claimName: {{ . | quote }}
    readOnly: true
{{- end }}
{{- if .Values.secrets.keys.name }}
# The whole directory and no subPath, so that changed keys arrive without a restart.
- name: keys
  secret:
    secretName: {{ .Values.secrets.keys.name | quote }}
    defaultMode: 0440
{{- end }}
{{- end -}}

{{/* Resources of a container with GPUs; of (dict "resources" ... "gpus" N "gpuName" NAME). */}}
{{- define "vbon.resources" -}}
{{- $resources := deepCopy (default dict .resources) -}}
{{- if gt (int .gpus) 0 -}}
{{- $gpus := dict .gpuName (toString (int .gpus)) -}}
{{- $limits := mergeOverwrite (default dict $resources.limits) $gpus -}}
{{- $_ := set $resources "limits" $limits -}}
{{- end -}}
{{- toYaml $resources -}}
{{- end -}}

{{- define "vbon.pullSecrets" -}}
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
{{- range . }}
  - name: {{ . | quote }}
{{- end }}
{{- end }}
{{- end -}}
